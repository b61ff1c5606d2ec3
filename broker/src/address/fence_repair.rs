//! Builds the fence again after another program removed parts of it: `nft flush ruleset`, a restart of a firewall.
//!
//! Promises: the fence that is built again lets each address pass until the end of its lease, and no longer; a lease is never
//! prolonged. It is compared with the leases when the kernel reports a removal, when the kernel refuses a change of it, and at
//! each full comparison. A program that removes it all the time does not keep the broker from serving.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::sleep;

use super::Addresses;
use super::fence::{Contents, Ended, Fence, MAX_ADDRESSES, Members, must_pass_until};
use super::lease::{Lease, LeaseState, MIN_LIFETIME};
use crate::log;
use crate::sys::BootTime;

/// How often the fence is built again for one request, if another program removes it each time.
pub(super) const MAX_REPAIRS: usize = 3;
/// The pause after notifications: a repair makes the kernel wait, and so everybody else.
const PAUSE: Duration = Duration::from_millis(50);

impl Addresses {
    /// Handles the queued notifications about the packet filter.
    ///
    /// # Errors
    /// EAGAIN when none is queued, or there is no fence.
    pub(super) fn receive_fence_changes(&self) -> nix::Result<()> {
        let fence = self.host.fence().ok_or(Errno::EAGAIN)?;
        if fence.monitor().receive()? {
            let _ = self.repair(&fence, true); // it has written the log
        }
        Ok(())
    }

    /// Handles notifications about the packet filter as they arrive, with a pause after each repair.
    pub(super) async fn follow_fence_changes(self: Rc<Self>, socket: UnixDatagram) {
        loop {
            let received = socket.async_io(Interest::READABLE, || Ok(self.receive_fence_changes()?)).await;
            if let Err(error) = received {
                tracing::debug!(%error, "cannot receive notifications about the packet filter");
            }
            sleep(PAUSE).await;
        }
    }

    /// Makes the fence again as the leases require, if it is not. The log tells a failure, and the next comparison tries again.
    pub(super) fn repair_fence(&self) {
        let _ = self.try_repair_fence(); // it has written the log
    }

    /// As [`Addresses::repair_fence`].
    ///
    /// # Errors
    /// As [`Addresses::build_fence`].
    pub(super) fn try_repair_fence(&self) -> Result<(), Errno> {
        let Some(fence) = self.host.fence() else { return Ok(()) };
        let is_reported = fence.monitor().receive().unwrap_or(false); // no notification may be queued
        self.repair(&fence, is_reported)
    }

    /// As [`Addresses::try_repair_fence`]. `is_reported`: the kernel has reported that another program removed something.
    fn repair(&self, fence: &Fence, is_reported: bool) -> Result<(), Errno> {
        let contents = self.fence_contents();
        match fence.compare(&contents) {
            Ok(Some(ended)) if ended.is_empty() => return Ok(()),
            Ok(Some(ended)) if !is_reported => return self.open_ended(ended),
            Ok(_) => {}
            Err(errno) => {
                tracing::warn!(error = %errno, "cannot compare the fence with the leases; building it again")
            }
        }
        let built = self.build_fence(fence);
        match built {
            Ok(()) => {
                self.counters.fence_repairs.up();
                tracing::warn!(
                    addresses = contents.passing().count(),
                    "another program removed parts of the fence from the packet filter; built it again"
                );
            }
            Err(errno) => tracing::error!(
                error = %errno,
                "another program removed parts of the fence from the packet filter, and it cannot be built again; addresses may \
                 be blocked, or answer longer than their lease"
            ),
        }
        built
    }

    /// Lets addresses pass again for which the fence ended before their lease.
    fn open_ended(&self, ended: Ended) -> Result<(), Errno> {
        tracing::debug!(addresses = ended.addresses.len(), "the fence ended before leases; opening it again");
        let mut opened = self.open_groups(ended.addresses);
        for (holder, deadline) in ended.holders {
            tracing::debug!(holder = %log::named(holder), "the fence ended before the leases of a holder; opening it again");
            opened = opened.and(self.host.set_holder_in_fence(holder, deadline, Fence::start_holder));
        }
        if let Err(errno) = opened {
            tracing::warn!(error = %errno, "the fence blocks addresses before the end of their lease");
        }
        opened
    }

    /// Changes the fence. While it is lost, because another program removed it (ENOENT), builds it again and repeats the change.
    ///
    /// # Errors
    /// Those of the change.
    pub(super) fn change_fence<T>(
        &self,
        mut change: impl FnMut() -> Result<T, Errno>,
        is_lost: impl Fn() -> bool,
    ) -> Result<T, Errno> {
        let mut changed = change();
        for _ in 0..MAX_REPAIRS {
            let is_missing = changed.as_ref().is_err_and(|errno| *errno == Errno::ENOENT);
            if !is_missing || !is_lost() {
                break;
            }
            self.repair_fence();
            changed = change();
        }
        changed
    }

    /// Builds the fence for the leases, from nothing.
    ///
    /// # Errors
    /// The kernel refused it; ETIME if it cannot be told the deadlines of some addresses in time. These are blocked, and all others
    /// pass.
    pub(super) fn build_fence(&self, fence: &Fence) -> Result<(), Errno> {
        fence.create()?;
        // Those that end too soon to be opened are blocked at once.
        let added = self.added_addresses();
        fence.block(&added)?;
        let contents = self.fence_contents();
        fence.block(&contents.blocked)?;
        let opened = self.open_groups(contents.open);
        let joined = contents.members.iter().map(|members| self.build_members(fence, members));
        let built = joined.fold(opened, Result::and);
        // This process may have been stopped meanwhile.
        let now = BootTime::now();
        let ended: Vec<IpAddr> = {
            let table = self.table.borrow();
            let has_ended = |address: &IpAddr| table.get(*address).is_none_or(|lease| lease.is_expired(now));
            added.into_iter().filter(has_ended).collect()
        };
        fence.close(&ended).and(built)
    }

    /// Opens the fence for addresses in groups, those that end first at first: with a deadline that is too near, a whole group is
    /// blocked.
    fn open_groups(&self, mut open: Vec<(IpAddr, Option<BootTime>)>) -> Result<(), Errno> {
        open.sort_by_key(|(_, deadline)| (deadline.is_none(), *deadline));
        let soon = BootTime::now().saturating_add(2 * MIN_LIFETIME);
        let ending = open.partition_point(|(_, deadline)| deadline.is_some_and(|deadline| deadline < soon));
        let (ending, others) = open.split_at(ending);
        let groups = ending.chunks(MAX_ADDRESSES).chain(others.chunks(MAX_ADDRESSES));
        groups.map(|group| self.host.open_for(group)).fold(Ok(()), Result::and)
    }

    /// Opens the fence for the addresses that a holder renews together.
    fn build_members(&self, fence: &Fence, members: &Members) -> Result<(), Errno> {
        let timed = members.addresses.iter().map(|address| (*address, Some(members.deadline)));
        self.open_groups(timed.collect())?;
        self.host.set_holder_in_fence(members.holder, members.deadline, Fence::start_holder)?;
        fence.join(&members.addresses, members.holder)
    }

    /// The addresses that this host may have.
    fn added_addresses(&self) -> Vec<IpAddr> {
        let table = self.table.borrow();
        let added = table.iter().filter(|lease| lease.state != LeaseState::Probing);
        added.map(|lease| lease.placement.address).collect()
    }

    /// What the fence has to contain.
    fn fence_contents(&self) -> Contents {
        let now = BootTime::now();
        let mut contents = Contents { blocked: self.host.quarantined(), ..Contents::default() };
        let table = self.table.borrow();
        for lease in table.iter().filter(|lease| lease.state != LeaseState::Probing) {
            let (address, holder) = (lease.placement.address, lease.holder);
            let Some(deadline) = lease.deadline.filter(|_| lease.renewed_with_all) else {
                if must_pass(lease, now) {
                    contents.open.push((address, lease.deadline));
                }
                continue;
            };
            let at = contents.members.iter().position(|members| members.holder == holder);
            let at = at.unwrap_or_else(|| {
                let (addresses, ending) = (Vec::new(), Vec::new());
                contents.members.push(Members { holder, deadline, addresses, ending });
                contents.members.len() - 1
            });
            if let Some(members) = contents.members.get_mut(at) {
                let addresses =
                    if must_pass(lease, now) { &mut members.addresses } else { &mut members.ending };
                addresses.push(address);
            }
        }
        contents
    }
}

/// Whether the lease runs long enough that the fence must let the address pass.
pub(super) fn must_pass(lease: &Lease, now: BootTime) -> bool {
    must_pass_until(lease.deadline, now)
}
