//! The tasks that keep addresses without a request: expiry, announcements, notifications, received frames.
//!
//! Promises: removes an address at the instant at which its lease ends; sends announcements when they are due; handles
//! notifications and rivals as they arrive; compares everything with the kernel at the configured interval.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, sleep, sleep_until};

use super::removal_notice::NOTICE_PERIOD;
use super::remove::RemovalCause;
use super::{Addresses, FloatingListeners};
use crate::log::{self, Origin};
use crate::sys::BootTime;

/// The longest sleep: timers stop while the host is suspended, but the clock of leases does not.
const MAX_SLEEP: Duration = Duration::from_secs(1);
/// The number of expired addresses to remove at once: with thousands of them, the kernel takes milliseconds for each of IPv6.
const MAX_EXPIRED: usize = 16;
/// The pause after a failed receive.
const PAUSE: Duration = Duration::from_millis(10);

/// Starts the tasks. `listeners` starts and stops the floating listeners of each address.
///
/// # Errors
/// EMFILE, or those of epoll_ctl(2).
pub fn spawn(addresses: &Rc<Addresses>, listeners: &Rc<dyn FloatingListeners>) -> io::Result<()> {
    addresses.vrf_listeners.set_listeners(Rc::downgrade(listeners));
    spawn_receiver(addresses, addresses.reconciler.socket()?, |addresses| {
        let received = addresses.reconciler.receive();
        if received.is_err() {
            // None is queued: what happened to the interface of a missing address is known.
            addresses.reconciler.restore_missing();
        }
        received
    })?;
    if let Some(fence) = addresses.host.fence() {
        let socket = UnixDatagram::from_std(fence.monitor().try_clone()?)?;
        tokio::task::spawn_local(addresses.clone().follow_fence_changes(socket));
    }
    if let Some(socket) = addresses.prober.socket()? {
        spawn_receiver(addresses, socket, |addresses| addresses.prober.receive())?;
    }
    if let Some(socket) = addresses.announcer.advertisements()? {
        spawn_receiver(addresses, socket, |addresses| addresses.announcer.receive_advertisement())?;
    }
    if let Some(gateways) = &addresses.gateways {
        tokio::task::spawn_local(gateways.clone().run());
    }
    tokio::task::spawn_local(run(addresses.clone()));
    Ok(())
}

async fn run(addresses: Rc<Addresses>) {
    let mut compare_at = Instant::now() + addresses.reconcile_interval.get();
    let mut leases_at = Instant::now();
    loop {
        let due = || addresses.reconciler.recheck_at().map_or(compare_at, |soon| soon.min(compare_at));
        // With thousands of addresses, rounds of announcements are due far more often than their leases need a look.
        if Instant::now() >= leases_at {
            leases_at = addresses.run_due();
        }
        let mut next = leases_at.min(due());
        if let Some(round) = addresses.announcer.send_due() {
            next = next.min(round.into());
        }
        tokio::select! {
            () = sleep_until(next) => {}
            () = addresses.wake.notified() => leases_at = Instant::now(),
        }
        // Something may be due again at once; requests come first.
        tokio::task::yield_now().await;
        if Instant::now() >= due() {
            addresses.reconciler.run();
            addresses.repair_fence();
            compare_at = Instant::now() + addresses.reconcile_interval.get();
        }
    }
}

fn spawn_receiver(
    addresses: &Rc<Addresses>,
    socket: StdUnixDatagram,
    receive: impl Fn(&Addresses) -> io::Result<()> + 'static,
) -> io::Result<()> {
    let (addresses, socket) = (addresses.clone(), UnixDatagram::from_std(socket)?);
    tokio::task::spawn_local(async move {
        loop {
            if let Err(error) = socket.async_io(Interest::READABLE, || receive(&addresses)).await {
                // ENETDOWN reports that an interface went down; the socket stays usable.
                tracing::debug!(%error, "cannot receive from a socket for addresses");
                sleep(PAUSE).await;
            }
        }
    });
    Ok(())
}

impl Addresses {
    /// Removes expired addresses, notifies holders and refreshes lifetimes, as far as that is due. Returns when to call it again.
    fn run_due(&self) -> Instant {
        let now = self.remove_expired();
        self.notify_expiring(now);
        let due = self.table.borrow().next_due(NOTICE_PERIOD);
        let sleep = due.map_or(MAX_SLEEP, |due| now.duration_until(due).min(MAX_SLEEP));
        let next = Instant::now() + sleep;
        self.refresh_kernel_lifetimes().map_or(next, |again| next.min(again.into()))
    }

    /// Removes some of the addresses whose lease has expired, the others soon after: the fence blocks them. Returns the time that the
    /// leases were compared with.
    fn remove_expired(&self) -> BootTime {
        let now = BootTime::now();
        let mut expired = self.table.borrow().expired(now);
        expired.truncate(MAX_EXPIRED);
        self.remove_all_expired(&expired);
        now
    }

    /// Removes those of the addresses whose lease has expired.
    pub(super) fn remove_expired_among(&self, addresses: impl Iterator<Item = IpAddr>) {
        let now = BootTime::now();
        let is_expired = |address: &IpAddr| {
            let table = self.table.borrow();
            table.get(*address).is_some_and(|lease| !lease.is_pending() && lease.is_expired(now))
        };
        let expired: Vec<IpAddr> = addresses.filter(is_expired).collect();
        self.remove_all_expired(&expired);
    }

    fn remove_all_expired(&self, expired: &[IpAddr]) {
        let holder =
            |address| self.table.borrow().get(address).map_or(Origin::Broker, |lease| lease.holder.into());
        let holders: HashMap<IpAddr, Origin> =
            expired.iter().map(|address| (*address, holder(*address))).collect();
        for outcome in self.remove_because(RemovalCause::Expired, expired) {
            match outcome {
                Ok(removed) => {
                    self.counters.expired.up();
                    let holder = holders.get(&removed.address).copied().unwrap_or(Origin::Broker);
                    log::record(holder, || {
                        tracing::warn!(address = %removed.address, "lease expired without a renewal; removed the address");
                    });
                }
                Err(fault) => {
                    tracing::error!(error = %fault, "lease expired without a renewal, but the address cannot be removed");
                }
            }
        }
    }
}
