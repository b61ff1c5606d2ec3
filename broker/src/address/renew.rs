//! Renews leases, in the fence and in the kernel; announces addresses again.
//!
//! Promises: never renews a lease that has expired by the clock of the table or of the fence; never adds an address that
//! another program removed.

use std::net::IpAddr;

use nix::errno::Errno;
use portreeve_protocol::{Fault, FaultCode};

use super::add::{Outcome, check_end};
use super::fence_repair::{MAX_REPAIRS, must_pass};
use super::host_addresses::HostAddresses;
use super::lease::{Lease, LeaseState};
use super::lease_end::LeaseEnd;
use super::{Addresses, fault};
use crate::holder::Holder;
use crate::sys::BootTime;
use crate::sys::rtnl::Placement;

impl Addresses {
    /// Renews leases of a holder. Without an end each lease keeps its own length.
    pub fn renew(
        &self,
        addresses: &[Result<IpAddr, Fault>],
        holder: Holder,
        end: Option<LeaseEnd>,
        epoch: u64,
    ) -> Vec<Outcome> {
        // Queued notifications may report that an address or the fence is missing.
        self.reconciler.receive_all();
        let _ = self.receive_fence_changes(); // none may be queued
        let now = BootTime::now();
        let find = |address: &Result<IpAddr, Fault>| {
            let address = address.clone()?;
            let mut table = self.table.borrow_mut();
            let lease = require_present(table.find_for(address, holder, epoch, now)?)?;
            let end = end.unwrap_or(LeaseEnd::After(lease.lifetime));
            check_end(end)?;
            Ok((lease.placement, end))
        };
        let leases: Vec<Result<(Placement, LeaseEnd), Fault>> = addresses.iter().map(find).collect();
        let found = leases.iter().flatten();
        let renewed: Vec<_> = found.map(|(placement, end)| (*placement, end.deadline(now))).collect();
        self.separate_from_holder(
            &renewed.iter().map(|(placement, _)| placement.address).collect::<Vec<IpAddr>>(),
        );
        let mut outcomes = self.renew_on_host(&renewed, HostAddresses::renew).into_iter();
        let outcome = |lease: Result<(Placement, LeaseEnd), Fault>| {
            let (placement, end) = lease?;
            let removed = || fault::removed_by_other_program(placement.address);
            outcomes.next().unwrap_or_else(|| Err(removed()))?;
            let mut table = self.table.borrow_mut();
            let lease = table.get_mut(placement.address).ok_or_else(removed)?;
            self.counters.renewals.up();
            lease.renew(end, now);
            lease.kernel_deadline = lease.deadline;
            Ok(lease.to_wire(now))
        };
        leases.into_iter().map(outcome).collect()
    }

    /// Renews addresses on the host, as `renew` does it. Where the fence has no element for a lease that still runs, another program
    /// removed it: the fence is built again, and the renewal repeated.
    pub(super) fn renew_on_host(
        &self,
        placements: &[(Placement, Option<BootTime>)],
        renew: impl Fn(&HostAddresses, &[(Placement, Option<BootTime>)]) -> Vec<Result<(), Fault>>,
    ) -> Vec<Result<(), Fault>> {
        let mut outcomes = renew(&self.host, placements);
        let is_lost = |outcome: &Result<(), Fault>, address| {
            let table = self.table.borrow();
            outcome.as_ref().is_err_and(|fault| fault.code == FaultCode::Expired)
                && table.get(address).is_some_and(|lease| must_pass(lease, BootTime::now()))
        };
        let mut cause = Errno::ENOENT;
        for _ in 0..MAX_REPAIRS {
            let all = outcomes.iter_mut().zip(placements);
            let lost: Vec<_> = all.filter(|(outcome, (one, _))| is_lost(outcome, one.address)).collect();
            if lost.is_empty() {
                break;
            }
            if let Err(errno) = self.try_repair_fence() {
                cause = errno;
            }
            let again: Vec<_> = lost.iter().map(|(_, placement)| **placement).collect();
            for ((outcome, _), renewed) in lost.into_iter().zip(renew(&self.host, &again)) {
                *outcome = renewed;
            }
        }
        for (outcome, (placement, _)) in outcomes.iter_mut().zip(placements) {
            if is_lost(outcome, placement.address) {
                *outcome = Err(fault::address_failed("renewing the fence", placement.address, cause));
            }
        }
        outcomes
    }

    /// Starts new announcements of the addresses of a holder.
    pub fn announce_again(
        &self,
        addresses: &[Result<IpAddr, Fault>],
        holder: Holder,
        epoch: u64,
    ) -> Vec<Outcome> {
        let now = BootTime::now();
        let announce = |address: &Result<IpAddr, Fault>| {
            let address = address.clone()?;
            let (lease, index) = {
                let mut table = self.table.borrow_mut();
                let lease = require_present(table.find_for(address, holder, epoch, now)?)?;
                (lease.to_wire(now), lease.placement.index)
            };
            match self.interfaces.get(index) {
                Some(interface) if interface.mac.is_none() => return Err(fault::no_mac(&interface.name)),
                _ => self.announcer.announce(address),
            }
            Ok(lease)
        };
        addresses.iter().map(announce).collect()
    }
}

/// Refuses the lease of an address that another program removed, or that went with its interface.
pub(super) fn require_present(lease: &mut Lease) -> Result<&mut Lease, Fault> {
    match lease.state {
        LeaseState::Missing if lease.removed_with_link => {
            Err(fault::removed_with_link(lease.placement.address, &lease.interface))
        }
        LeaseState::Missing => Err(fault::removed_by_other_program(lease.placement.address)),
        _ => Ok(lease),
    }
}
