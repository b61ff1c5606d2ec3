//! Renews all leases of a holder at once: one element of the fence lets all its addresses pass, if they are many.
//!
//! Promises: what the kernel has to change does not grow with the number of addresses that were renewed together before; an
//! address without a permit is not renewed and keeps its deadline; an expired lease is never renewed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nix::errno::Errno;
use portreeve_protocol::address::{MAX_ADDRESSES, RenewedAll};
use portreeve_protocol::{Fault, FaultCode};

use super::Addresses;
use super::add::check_end;
use super::fence::Fence;
use super::fence_repair::must_pass;
use super::host_addresses::HostAddresses;
use super::lease_end::LeaseEnd;
use crate::holder::Holder;
use crate::log;
use crate::sys::BootTime;
use crate::sys::rtnl::Placement;

/// The number of addresses up to which a holder's are renewed each by itself: that is one change of the fence too.
pub(super) const FEW: usize = 64;

/// A requested end, the deadline that results from it, and the time of the request.
type NewLease = (LeaseEnd, BootTime, BootTime);

/// The addresses of a holder at a renewal of all.
#[derive(Default)]
struct Found {
    /// Those that were renewed together before.
    members: Vec<IpAddr>,
    /// The others that can be.
    others: Vec<Placement>,
    /// Members without a permit.
    denied: Vec<IpAddr>,
    /// All.
    total: usize,
}

impl Addresses {
    /// Renews the leases of a holder that are permitted.
    ///
    /// # Errors
    /// Expired if the deadline has passed; Unsupported for too many addresses without the fence, or too many users; Os.
    pub fn renew_all(
        &self,
        holder: Holder,
        end: LeaseEnd,
        is_permitted: impl Fn(IpAddr) -> bool,
    ) -> Result<RenewedAll, Fault> {
        check_end(end)?;
        // Queued notifications may report that an address or the fence is missing.
        self.reconciler.receive_all();
        let _ = self.receive_fence_changes(); // none may be queued
        let now = BootTime::now();
        let deadline = end.deadline(now).ok_or_else(permanent)?;
        let found = self.find_all(holder, now, is_permitted);
        self.separate_from_holder(&found.denied);
        let lease = (end, deadline, now);
        let renewed = match self.host.fence() {
            Some(fence) if found.total > FEW => {
                if !fence.has_room_for(holder) && !self.make_room(&fence, holder) {
                    return Err(too_many_holders());
                }
                let members = self.renew_members(&found.members, holder, lease)?;
                members + self.renew_others(&found.others, holder, lease)
            }
            None if found.others.len() > MAX_ADDRESSES => return Err(too_many(found.others.len())),
            _ => self.renew_each(&found, lease),
        };
        self.counters.renewals.add(renewed);
        self.wake.notify_one();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(RenewedAll {
            now: BootTime::now().as_nanos(),
            deadline: deadline.as_nanos(),
            renewed: count(renewed),
            not_renewed: count(found.total.saturating_sub(renewed)),
            bounds: self.bounds(),
        })
    }

    fn find_all(&self, holder: Holder, now: BootTime, is_permitted: impl Fn(IpAddr) -> bool) -> Found {
        let mut found = Found::default();
        let table = self.table.borrow();
        for lease in table.iter().filter(|lease| lease.holder == holder) {
            found.total += 1;
            let address = lease.placement.address;
            let can_be_renewed = lease.is_held() && lease.deadline.is_some() && !lease.is_expired(now);
            match (can_be_renewed && is_permitted(address), lease.renewed_with_all) {
                (true, true) => found.members.push(address),
                (true, false) => found.others.push(lease.placement),
                (false, true) => found.denied.push(address),
                (false, false) => {}
            }
        }
        found
    }

    /// Builds the fence again without the rules of holders that renew no addresses together any more. Returns whether this one
    /// then has room in it.
    fn make_room(&self, fence: &Fence, holder: Holder) -> bool {
        if let Err(errno) = self.build_fence(fence) {
            tracing::error!(error = %errno, "cannot build the fence again");
        }
        fence.has_room_for(holder)
    }

    /// Renews the addresses that were renewed together before, and returns how many. They are none if their time was over.
    fn renew_members(
        &self,
        members: &[IpAddr],
        holder: Holder,
        (end, deadline, now): NewLease,
    ) -> Result<usize, Fault> {
        let set = match members.is_empty() {
            true => Fence::start_holder,
            false => Fence::renew_holder,
        };
        let is_lost = || {
            let table = self.table.borrow();
            let first = members.first().and_then(|first| table.get(*first));
            first.is_none_or(|lease| must_pass(lease, BootTime::now()))
        };
        match self.change_fence(|| self.host.set_holder_in_fence(holder, deadline, set), is_lost) {
            Ok(()) => {}
            Err(Errno::ENOENT) if !is_lost() => {
                self.separate_from_holder(members);
                let started = self.host.set_holder_in_fence(holder, deadline, Fence::start_holder);
                return started.map(|()| 0).map_err(|errno| failed(holder, errno));
            }
            Err(errno) => return Err(failed(holder, errno)),
        }
        let mut table = self.table.borrow_mut();
        for address in members {
            table.get_mut(*address).into_iter().for_each(|lease| lease.renew(end, now));
        }
        Ok(members.len())
    }

    /// Renews addresses that are from now on renewed together with those before. Returns how many were.
    fn renew_others(&self, others: &[Placement], holder: Holder, (end, deadline, now): NewLease) -> usize {
        let timed: Vec<_> = others.iter().map(|placement| (*placement, Some(deadline))).collect();
        let outcomes = self.renew_on_host(&timed, HostAddresses::renew_in_fence);
        let renewed = others.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
        let renewed: Vec<IpAddr> = renewed.map(|(placement, _)| placement.address).collect();
        {
            let mut table = self.table.borrow_mut();
            for address in &renewed {
                if let Some(lease) = table.get_mut(*address) {
                    lease.renew(end, now);
                    lease.renewed_with_all = true;
                }
            }
        }
        if let Err(errno) = self.host.join_holder(&renewed, holder) {
            tracing::warn!(holder = %log::named(holder), error = %errno, "cannot let addresses pass with their holder; comparing the fence with the leases");
            self.repair_fence();
        }
        renewed.len()
    }

    /// Renews each address by itself, in the fence and in the kernel.
    fn renew_each(&self, found: &Found, (end, deadline, now): NewLease) -> usize {
        self.separate_from_holder(&found.members);
        let members: Vec<Placement> = {
            let table = self.table.borrow();
            found.members.iter().filter_map(|address| Some(table.get(*address)?.placement)).collect()
        };
        let all = members.iter().chain(&found.others);
        let timed: Vec<_> = all.map(|placement| (*placement, Some(deadline))).collect();
        let outcomes = self.renew_on_host(&timed, HostAddresses::renew);
        let mut table = self.table.borrow_mut();
        let renewed = timed.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
        let renewed = renewed.filter_map(|((placement, _), _)| {
            let lease = table.get_mut(placement.address)?;
            lease.renew(end, now);
            lease.kernel_deadline = Some(deadline);
            Some(())
        });
        renewed.count()
    }

    /// Gives those of the addresses that their holder renews together an element of their own in the fence, with the deadline that
    /// they have.
    pub(super) fn separate_from_holder(&self, addresses: &[IpAddr]) {
        let mut members: BTreeMap<Holder, Vec<(Placement, Option<BootTime>)>> = BTreeMap::new();
        {
            let mut table = self.table.borrow_mut();
            for address in addresses {
                if let Some(lease) = table.get_mut(*address).filter(|lease| lease.renewed_with_all) {
                    lease.renewed_with_all = false;
                    members.entry(lease.holder).or_default().push((lease.placement, lease.deadline));
                }
            }
        }
        for (holder, members) in members {
            match self.host.leave_holder(&members, holder) {
                Ok(()) => {}
                Err(errno) => {
                    let addresses = members.len();
                    tracing::warn!(addresses, holder = %log::named(holder), error = %errno, "cannot separate addresses in the fence; comparing it with the leases");
                    self.repair_fence();
                }
            }
        }
    }
}

fn failed(holder: Holder, errno: Errno) -> Fault {
    let message = format!("renewing all addresses of {holder} in the fence failed: {}", errno.desc());
    Fault::new(FaultCode::Os, &message).subject("nf_tables").errno(errno as i32)
}

fn permanent() -> Fault {
    Fault::new(FaultCode::Invalid, "a renewal of all addresses cannot make them permanent")
        .subject("lease")
        .remedy("give a lease of at least 3 s, or renew the addresses one by one")
}

fn too_many_holders() -> Fault {
    Fault::new(FaultCode::Unsupported, "too many users renew all their addresses together")
        .subject("nf_tables")
        .remedy("renew the addresses in requests that name them")
}

fn too_many(count: usize) -> Fault {
    let message =
        format!("without the fence, {count} addresses cannot be renewed together, only {MAX_ADDRESSES}");
    Fault::new(FaultCode::Unsupported, &message)
        .subject("nf_tables")
        .remedy("use a kernel with nf_tables, or renew the addresses in several requests")
}
