//! The table of leases: the holder, deadline and epoch of each address.
//!
//! Promises: an address has one holder at a time; an expired lease is never renewed; an epoch never decreases. The holder
//! is compared first: a request about an address of another holder neither learns nor changes anything of its lease.
//! Data only.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use portreeve_protocol::{Fault, FaultCode};

use super::fault::lease_expired;
use super::followers::Followers;
use super::lease::{Lease, LeaseState};
use super::past_epochs::{PastEpochs, PastLease};
use super::shares::{Limit, Shares};
use crate::holder::Holder;
use crate::sys::BootTime;

/// All leases.
#[derive(Debug, Default)]
pub struct LeaseTable {
    leases: BTreeMap<IpAddr, Lease>,
    past: PastEpochs,
    followers: Followers,
    shares: Shares,
}

impl LeaseTable {
    /// Inserts the lease of an address that is being added.
    ///
    /// # Errors
    /// InUse if the address has a holder, Expired for an old epoch, Quota.
    pub fn insert_new(&mut self, lease: Lease, limit: Limit) -> Result<(), Fault> {
        let (address, holder) = (lease.placement.address, lease.holder);
        let in_use = |other: Holder| {
            let message = format!("cannot add {address}: {other} holds it on this broker");
            Fault::new(FaultCode::InUse, &message)
                .subject(&other.to_string())
                .remedy("have its holder remove it first")
        };
        let existing = self.leases.get(&address);
        if let Some(other) = existing.filter(|existing| existing.holder != holder) {
            return Err(in_use(other.holder));
        }
        let current = existing.map_or(0, |existing| existing.epoch);
        check_epoch(address, lease.epoch, current.max(self.past.newest(address, holder)))?;
        if existing.is_some() {
            return Err(in_use(holder));
        }
        self.shares.check(holder, limit, &format!("add {address}"))?;
        self.insert(lease);
        Ok(())
    }

    /// Inserts the lease of an address that has none, without any check.
    pub fn insert(&mut self, lease: Lease) {
        let address = lease.placement.address;
        self.shares.add(lease.holder);
        self.followers.insert(lease.follows, address);
        self.leases.insert(address, lease);
    }

    /// The live lease of an address, if this holder has it. Changes nothing.
    fn check(&self, address: IpAddr, holder: Holder, epoch: u64, now: BootTime) -> Result<&Lease, Fault> {
        let Some(lease) = self.leases.get(&address).filter(|lease| lease.holder == holder) else {
            return Err(match self.past.get(address, holder) {
                Some(past) => match check_epoch(address, epoch, past.epoch) {
                    Ok(()) if past.expired => lease_expired(address),
                    Ok(()) => no_lease(address),
                    Err(fault) => fault,
                },
                None => no_lease(address),
            });
        };
        check_epoch(address, epoch, lease.epoch)?;
        match lease.state {
            LeaseState::Probing | LeaseState::Adding => {
                Err(Fault::new(FaultCode::Busy, &format!("{address} is being added"))
                    .remedy("wait for the reply to that request"))
            }
            _ if lease.is_expired(now) => Err(lease_expired(address)),
            _ => Ok(lease),
        }
    }

    /// The live lease of an address, for a request of its holder. Its epoch becomes that of the request.
    ///
    /// # Errors
    /// NotFound if this holder does not have the address, Busy while it is being added, Expired for an expired lease or
    /// an old epoch. The table is unchanged then.
    pub fn find_for(
        &mut self,
        address: IpAddr,
        holder: Holder,
        epoch: u64,
        now: BootTime,
    ) -> Result<&mut Lease, Fault> {
        self.check(address, holder, epoch, now)?;
        let lease = self.leases.get_mut(&address).ok_or_else(|| no_lease(address))?;
        lease.epoch = epoch;
        Ok(lease)
    }

    /// Checks that a holder may remove an address; with `any_holder`, also if another holder has it. Changes nothing: the
    /// epoch of such a request never becomes that of another's lease.
    ///
    /// # Errors
    /// Those of [`LeaseTable::find_for`].
    pub fn check_removable(
        &self,
        address: IpAddr,
        holder: Holder,
        any_holder: bool,
        epoch: u64,
        now: BootTime,
    ) -> Result<(), Fault> {
        let other = self.leases.get(&address).filter(|_| any_holder).map(|lease| lease.holder);
        self.check(address, other.unwrap_or(holder), epoch, now).map(drop)
    }

    /// The lease of an address, of any holder and in any state.
    pub fn get(&self, address: IpAddr) -> Option<&Lease> {
        self.leases.get(&address)
    }

    /// As [`LeaseTable::get`], to change it.
    pub fn get_mut(&mut self, address: IpAddr) -> Option<&mut Lease> {
        self.leases.get_mut(&address)
    }

    /// Removes a lease and remembers its epoch, for its holder; `expired` if the lease expired, not if a request removed it.
    pub fn remove(&mut self, address: IpAddr, expired: bool) -> Option<Lease> {
        let lease = self.leases.remove(&address)?;
        self.followers.remove(lease.follows, address);
        self.shares.subtract(lease.holder);
        self.past.record(address, lease.holder, PastLease { epoch: lease.epoch, expired });
        Some(lease)
    }

    /// Remembers the epoch of a holder's request that removes an address, its own or another's.
    pub fn remember_removal(&mut self, address: IpAddr, holder: Holder, epoch: u64) {
        let expired = self.past.get(address, holder).is_some_and(|past| past.expired);
        self.past.record(address, holder, PastLease { epoch, expired });
    }

    /// What is remembered of removed addresses, those first that would be forgotten first.
    pub(super) fn past(&self) -> Vec<(IpAddr, Holder, PastLease)> {
        self.past.by_age()
    }

    /// Remembers a removed address of the predecessor.
    pub(super) fn insert_past(&mut self, address: IpAddr, holder: Holder, past: PastLease) {
        self.past.record(address, holder, past);
    }

    /// The followers of an address: those of the same holder.
    pub fn followers_of(&self, leader: IpAddr) -> Vec<IpAddr> {
        let holder = self.leases.get(&leader).map(|lease| lease.holder);
        let is_same = |follower: &&IpAddr| self.leases.get(follower).map(|lease| lease.holder) == holder;
        self.followers.of(leader).iter().filter(is_same).copied().collect()
    }

    /// The address that one follows, if its holder has that too.
    pub fn leader_of(&self, follower: IpAddr) -> Option<IpAddr> {
        let lease = self.leases.get(&follower)?;
        let leader = self.leases.get(&lease.follows?)?;
        (leader.holder == lease.holder).then_some(leader.placement.address)
    }

    /// The addresses whose lease has expired.
    pub fn expired(&self, now: BootTime) -> Vec<IpAddr> {
        let expired = self.added().filter(|lease| lease.is_expired(now));
        expired.map(|lease| lease.placement.address).collect()
    }

    /// The leases that end within this time and whose holder was not notified.
    pub fn expiring(&mut self, now: BootTime, within: Duration) -> impl Iterator<Item = &mut Lease> {
        let added = self.leases.values_mut().filter(|lease| !lease.is_pending());
        added.filter(move |lease| {
            !lease.expiry_notified
                && lease.deadline.is_some_and(|deadline| now.duration_until(deadline) <= within)
        })
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<BootTime> {
        self.added().filter_map(|lease| lease.deadline).min()
    }

    /// The earliest time at which a lease ends, or at which its holder is notified: `notice` before that.
    pub fn next_due(&self, notice: Duration) -> Option<BootTime> {
        let due = |lease: &Lease| match lease.expiry_notified {
            true => lease.deadline,
            false => lease.deadline.map(|deadline| deadline.saturating_sub(notice)),
        };
        self.added().filter_map(due).min()
    }

    fn added(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().filter(|lease| !lease.is_pending())
    }

    /// The leases whose address is missing.
    pub fn missing(&mut self) -> impl Iterator<Item = &mut Lease> {
        self.leases.values_mut().filter(|lease| lease.state == LeaseState::Missing)
    }

    /// The leases on the interface with this index.
    pub fn on_interface(&mut self, index: u32) -> impl Iterator<Item = &mut Lease> {
        self.leases.values_mut().filter(move |lease| lease.placement.index == index)
    }

    /// All leases, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// The leases after an address, in that order.
    pub fn after(&self, address: Option<IpAddr>) -> impl Iterator<Item = &Lease> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.leases.range((address.map_or(Unbounded, Excluded), Unbounded)).map(|(_, lease)| lease)
    }
}

/// Refuses the epoch of an older owner.
fn check_epoch(address: IpAddr, epoch: u64, newest: u64) -> Result<(), Fault> {
    if epoch >= newest {
        return Ok(());
    }
    let message = format!("epoch {epoch} of {address} is older than its newest epoch, {newest}");
    Err(Fault::new(FaultCode::Expired, &message)
        .subject(&newest.to_string())
        .remedy("a newer owner has the address; request it again from the coordinator"))
}

/// The same for an address of another holder and for one without a lease.
fn no_lease(address: IpAddr) -> Fault {
    Fault::new(FaultCode::NotFound, &format!("{address} has no lease, or another peer holds it"))
}

#[cfg(test)]
mod tests;
