//! Keeping: what happens to addresses by the clock and by the wire, while nobody asks anything.
//!
//! Promises: an address is removed at the instant that its lease ends; what is due is announced; news and rivals are heard
//! as they come; all of it is compared with the kernel every so often.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, sleep_until};

use super::notice::NOTICE;
use super::{Addresses, Listeners};
use crate::sys::boot_time::BootTime;

/// The longest sleep: the clock of leases goes on while the host sleeps, and the timer's does not.
const AT_MOST: Duration = Duration::from_secs(1);

/// Keeps the addresses for as long as the broker serves, and has `listeners` start and stop with them.
///
/// # Errors
/// The sockets cannot be waited on.
pub fn keep(addresses: &Rc<Addresses>, listeners: &Rc<dyn Listeners>) -> io::Result<()> {
    let _it_is_unset_until_here = addresses.listeners.set(Rc::downgrade(listeners));
    let news = UnixDatagram::from_std(addresses.news.try_clone()?)?;
    watch(addresses, news, |addresses| {
        let taken = addresses.take_one();
        addresses.put_back();
        taken
    });
    if let Some(packet) = &addresses.packet {
        let wire = UnixDatagram::from_std(packet.watched()?)?;
        watch(addresses, wire, Addresses::listen_once);
    }
    if let Some(packet) = &addresses.advertisements {
        let wire = UnixDatagram::from_std(packet.watched()?)?;
        watch(addresses, wire, Addresses::hear_advertisement);
    }
    let kept = addresses.clone();
    tokio::task::spawn_local(async move {
        let mut compare = Instant::now() + kept.settings.get().check;
        loop {
            let due = |kept: &Addresses| kept.doubt.get().map_or(compare, |soon| soon.min(compare));
            let next = kept.turn().min(due(&kept));
            tokio::select! {
                () = sleep_until(next) => {}
                () = kept.changed.notified() => {}
            }
            if Instant::now() >= due(&kept) {
                kept.doubt.set(None);
                kept.compare();
                kept.put_back();
                compare = Instant::now() + kept.settings.get().check;
            }
        }
    });
    Ok(())
}

fn watch(
    addresses: &Rc<Addresses>,
    socket: UnixDatagram,
    take: impl Fn(&Addresses) -> io::Result<()> + 'static,
) {
    let addresses = addresses.clone();
    tokio::task::spawn_local(async move {
        loop {
            if let Err(error) = socket.async_io(Interest::READABLE, || take(&addresses)).await {
                // ENETDOWN tells of an interface that went down; the socket goes on.
                tracing::debug!(%error, "receiving");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
}

impl Addresses {
    /// Does what is due, and tells when to look again.
    fn turn(&self) -> Instant {
        let now = self.end_leases();
        self.tell_of_ends(now);
        let end = self.table.borrow().next_due(NOTICE).map_or(AT_MOST, |end| now.until(end).min(AT_MOST));
        let end = Instant::now() + end;
        self.announce_due().map_or(end, |due| end.min(due.into()))
    }

    /// Removes the addresses whose lease has ended by now, and tells which moment that is.
    pub(super) fn end_leases(&self) -> BootTime {
        let now = BootTime::now();
        let over = self.table.borrow().over(now);
        for outcome in self.remove(&over, true) {
            match outcome {
                Ok(removed) => {
                    self.counts.expired.up();
                    tracing::warn!(address = %removed.address, "a lease was not renewed; the address is gone")
                }
                Err(fault) => tracing::error!(%fault, "a lease was not renewed, and its address stays"),
            }
        }
        now
    }
}
