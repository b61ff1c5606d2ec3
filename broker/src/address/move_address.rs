//! Moves addresses from one interface of this host to another.
//!
//! Promises: a moved address is on the new interface only; after a failure it is on the old one only. It is on at least
//! one of them all the time, so that its connections and listeners survive. Its lease, fence and epoch do not change.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use nix::errno::Errno;
use portreeve_protocol::{EventCode, Fault, FaultCode, Text};

use super::add::{AddSpec, Outcome};
use super::renew::require_present;
use super::{Addresses, fault};
use crate::holder::Holder;
use crate::sys::rtnl::{self, Placement};
use crate::sys::{BootTime, Interface};

/// One address to move.
#[derive(Clone, Copy)]
struct Move {
    from: Placement,
    to: Placement,
    /// When the kernel is to remove it.
    end: Option<BootTime>,
}

impl Addresses {
    /// Moves addresses of a holder to the interfaces in their specs, and returns the outcome of each.
    pub fn move_to(
        &self,
        specs: &[Result<AddSpec, Fault>],
        holder: Holder,
        epoch: u64,
        announce: bool,
    ) -> Vec<Outcome> {
        // Queued notifications may report an address missing.
        self.reconciler.receive_all();
        let started: Vec<_> = specs
            .iter()
            .map(|spec| spec.clone().and_then(|spec| self.start_move(&spec, holder, epoch, announce)))
            .collect();
        // A repeated address is moved once.
        let mut seen = HashSet::new();
        let moves: Vec<Move> = started
            .iter()
            .filter_map(|started| *started.as_ref().ok()?)
            .filter(|one| seen.insert(one.to.address))
            .collect();
        let failed = self.execute(&moves);
        let moved: Vec<&Move> = moves.iter().filter(|one| !failed.contains_key(&one.to.address)).collect();
        moved.iter().for_each(|one| self.finish_move(one, announce));
        let vrf_of = |placement: Placement| self.interfaces.vrf_of(placement.index);
        let changes_vrf = moved.iter().filter(|one| vrf_of(one.from) != vrf_of(one.to));
        let interfaces: HashSet<u32> = changes_vrf.map(|one| one.to.index).collect();
        interfaces.into_iter().for_each(|index| self.vrf_listeners.follow(index));
        let now = BootTime::now();
        let outcome = |(spec, started): (&Result<AddSpec, Fault>, Result<Option<Move>, Fault>)| {
            started?;
            let address = spec.as_ref().map_err(Fault::clone)?.address;
            match failed.get(&address) {
                Some(fault) => Err(fault.clone()),
                None => self
                    .table
                    .borrow()
                    .get(address)
                    .map(|lease| lease.to_wire(now))
                    .ok_or_else(|| fault::removed_by_other_program(address)),
            }
        };
        specs.iter().zip(started).map(outcome).collect()
    }

    /// Checks one address; `None` if it is on that interface already.
    fn start_move(
        &self,
        spec: &AddSpec,
        holder: Holder,
        epoch: u64,
        announce: bool,
    ) -> Result<Option<Move>, Fault> {
        let now = BootTime::now();
        let interface = Interface::by_name(self.host.route(), &spec.interface)
            .map_err(|errno| fault::interface_failed(&spec.interface, errno))?;
        if !interface.up {
            return Err(fault::interface_down(&spec.interface));
        }
        if announce && interface.mac.is_none() {
            return Err(fault::no_mac(&spec.interface));
        }
        let mut table = self.table.borrow_mut();
        let lease = require_present(table.find_for(spec.address, holder, epoch, now)?)?;
        if lease.is_ending(now) {
            let message = format!("cannot move {}: its lease ends within a second", spec.address);
            return Err(Fault::new(FaultCode::Expired, &message).remedy("renew it first"));
        }
        let to = Placement { address: spec.address, index: interface.index, prefix: spec.prefix };
        let one = Move { from: lease.placement, to, end: lease.end_in_kernel() };
        drop(table);
        self.reconciler.interface_changed(interface);
        Ok(Some(one).filter(|one| one.from.index != one.to.index))
    }

    /// Adds each address to its new interface, removes it from the old one, and checks both. Rolls back those that fail,
    /// and returns their faults.
    fn execute(&self, moves: &[Move]) -> HashMap<IpAddr, Fault> {
        let mut failed = HashMap::new();
        if moves.is_empty() {
            return failed;
        }
        // This host has the addresses already, so no other host can have them: no duplicate address detection.
        let new: Vec<_> = moves.iter().map(|one| (one.to, one.end)).collect();
        let added = self.host.add_undetected(&new);
        let mut fail = |one: &Move, call: &str, errno: Errno| {
            failed.insert(one.to.address, fault::address_failed(call, one.to.address, errno));
        };
        let mut moved: Vec<Move> = moves
            .iter()
            .zip(added)
            .filter_map(|(one, outcome)| match outcome {
                Ok(()) => Some(*one),
                Err(errno) => {
                    fail(one, "RTM_NEWADDR", errno);
                    None
                }
            })
            .collect();
        let old: Vec<Placement> = moved.iter().map(|one| one.from).collect();
        let mut removed = rtnl::remove(self.host.route(), &old).into_iter();
        let present: Result<HashSet<Placement>, Errno> = rtnl::list(self.host.route())
            .map(|present| present.into_iter().map(|address| address.placement).collect());
        let mut incomplete = Vec::new();
        moved.retain(|one| {
            let removed = match ignore_absent(removed.next().unwrap_or(Err(Errno::EIO))) {
                Ok(()) => Ok(()),
                Err(errno) => Err(("RTM_DELADDR", errno)),
            };
            let seen = present.as_ref().map_err(|errno| ("RTM_GETADDR", *errno)).and_then(|present| {
                match (present.contains(&one.from), present.contains(&one.to)) {
                    (false, true) => Ok(()),
                    (true, _) => Err(("RTM_DELADDR", Errno::EEXIST)),
                    (false, false) => Err(("RTM_NEWADDR", Errno::EADDRNOTAVAIL)),
                }
            });
            let Err((call, errno)) = removed.and(seen) else { return true };
            fail(one, call, errno);
            incomplete.push(*one);
            false
        });
        self.roll_moves_back(&incomplete);
        failed
    }

    /// Adds addresses to their old interface again, and removes them from the new one. An address that cannot be added is
    /// marked missing, so that the reconciler restores it.
    fn roll_moves_back(&self, moves: &[Move]) {
        if moves.is_empty() {
            return;
        }
        let old: Vec<_> = moves.iter().map(|one| (one.from, one.end)).collect();
        let added = self.host.add_undetected(&old);
        let new: Vec<Placement> = moves.iter().map(|one| one.to).collect();
        let removed = rtnl::remove(self.host.route(), &new);
        for ((one, added), removed) in moves.iter().zip(added).zip(removed) {
            let address = one.to.address;
            if let Err(errno) = ignore_absent(removed) {
                let index = one.to.index;
                tracing::error!(%address, index, error = %errno, "cannot remove an address from the interface of a failed move");
            }
            if let Err(errno) = added
                && errno != Errno::EEXIST
            {
                let index = one.from.index;
                tracing::error!(%address, index, error = %errno, "cannot return an address to its interface after a failed move");
                self.reconciler.mark_missing_where(|placement| *placement == one.from);
            }
        }
    }

    /// Enters a move in the lease table, publishes it, and announces the address.
    fn finish_move(&self, one: &Move, announce: bool) {
        let name =
            |index: u32| self.interfaces.get(index).map_or_else(String::new, |interface| interface.name);
        let mut table = self.table.borrow_mut();
        let Some(lease) = table.get_mut(one.to.address) else { return };
        lease.placement = one.to;
        lease.interface = Text::truncated(&name(one.to.index));
        // End the announcements on the old interface.
        let was_announced = std::mem::take(&mut lease.announcement_series) > 0;
        self.events.address(lease, EventCode::AddressMoved, &name(one.from.index));
        drop(table);
        if announce || was_announced {
            self.announcer.announce(one.to.address);
        }
    }
}

/// Treats the removal of an address as a success if the address or its interface was removed already.
fn ignore_absent(outcome: Result<(), Errno>) -> Result<(), Errno> {
    match outcome {
        Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => Ok(()),
        other => other,
    }
}
