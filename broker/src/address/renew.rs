//! Renews leases, in the fence and in the kernel; announces addresses again.
//!
//! Promises: never renews a lease that has expired by the clock of the table or of the fence; never adds an address that
//! another program removed.

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::{Fault, FaultCode};

use super::add::Outcome;
use super::fence_repair::{MAX_REPAIRS, must_pass};
use super::lease::{Lease, LeaseState};
use super::{Addresses, fault};
use crate::holder::Holder;
use crate::sys::BootTime;
use crate::sys::rtnl::{Lifetime, Placement};

impl Addresses {
    /// Renews leases of a holder. Without a lifetime each lease keeps its own.
    pub fn renew(
        &self,
        addresses: &[Result<IpAddr, Fault>],
        holder: Holder,
        lifetime: Option<Lifetime>,
        epoch: u64,
    ) -> Vec<Outcome> {
        // Queued notifications may report that an address or the fence is missing.
        self.reconciler.receive_all();
        let _ = self.receive_fence_changes(); // none may be queued
        let now = BootTime::now();
        let find = |address: &Result<IpAddr, Fault>| {
            let mut table = self.table.borrow_mut();
            let lease = require_present(table.find_for(address.clone()?, holder, epoch, now)?)?;
            Ok((lease.placement, lifetime.unwrap_or(lease.lifetime)))
        };
        let leases: Vec<Result<(Placement, Lifetime), Fault>> = addresses.iter().map(find).collect();
        let renewed: Vec<(Placement, Lifetime)> = leases.iter().flatten().copied().collect();
        let mut outcomes = self.renew_on_host(&renewed).into_iter();
        let outcome = |lease: Result<(Placement, Lifetime), Fault>| {
            let (placement, lifetime) = lease?;
            let removed = || fault::removed_by_other_program(placement.address);
            outcomes.next().unwrap_or_else(|| Err(removed()))?;
            let mut table = self.table.borrow_mut();
            let lease = table.get_mut(placement.address).ok_or_else(removed)?;
            self.counters.renewals.up();
            lease.lifetime = lifetime;
            lease.expiry_notified = false;
            lease.deadline = lifetime.map(|seconds| now.saturating_add(Duration::from_secs(seconds.into())));
            Ok(lease.to_wire(now))
        };
        leases.into_iter().map(outcome).collect()
    }

    /// Renews addresses in the fence and in the kernel. Where the fence has no element for a lease that still runs, another
    /// program removed it: the fence is built again, and the renewal repeated.
    fn renew_on_host(&self, placements: &[(Placement, Lifetime)]) -> Vec<Result<(), Fault>> {
        let mut outcomes = self.host.renew(placements);
        let is_lost = |outcome: &Result<(), Fault>, address| {
            let table = self.table.borrow();
            outcome.as_ref().is_err_and(|fault| fault.code == FaultCode::Expired)
                && table.get(address).is_some_and(|lease| must_pass(lease, BootTime::now()))
        };
        for _ in 0..MAX_REPAIRS {
            let all = outcomes.iter_mut().zip(placements);
            let lost: Vec<_> = all.filter(|(outcome, (one, _))| is_lost(outcome, one.address)).collect();
            if lost.is_empty() || !self.repair_fence() {
                break;
            }
            let again: Vec<(Placement, Lifetime)> = lost.iter().map(|(_, placement)| **placement).collect();
            for ((outcome, _), renewed) in lost.into_iter().zip(self.host.renew(&again)) {
                *outcome = renewed;
            }
        }
        for (outcome, (placement, _)) in outcomes.iter_mut().zip(placements) {
            if is_lost(outcome, placement.address) {
                *outcome = Err(fault::address_failed("renewing the fence", placement.address, Errno::ENOENT));
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
