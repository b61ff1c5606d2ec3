//! The table of leases: the holder, deadline and epoch of each address.
//!
//! Promises: an address has one holder at a time; an expired lease is never renewed; an epoch never decreases.
//! Data only.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use portreeve_protocol::{Fault, FaultCode};

use super::fault::lease_expired;
use super::followers::Followers;
use super::lease::{Lease, LeaseState};
use crate::holder::Holder;
use crate::sys::BootTime;

/// The largest number of leases.
pub const MAX_LEASES: usize = 10_240;
/// The largest number of removed addresses whose epoch is remembered.
pub const MAX_PAST_EPOCHS: usize = 65_536;

/// What is remembered of a removed address.
#[derive(Clone, Copy, Debug)]
pub(super) struct PastLease {
    /// Its newest epoch.
    pub epoch: u64,
    /// Whether its lease expired; otherwise it was removed on request.
    pub expired: bool,
}

/// All leases.
#[derive(Debug, Default)]
pub struct LeaseTable {
    leases: BTreeMap<IpAddr, Lease>,
    past: HashMap<IpAddr, PastLease>,
    followers: Followers,
    /// The number of leases of each holder.
    counts: HashMap<Holder, usize>,
}

impl LeaseTable {
    /// Inserts the lease of an address that is being added, for a holder that may have `max` leases.
    ///
    /// # Errors
    /// InUse if the address has a holder, Expired for an old epoch, Quota.
    pub fn insert_new(&mut self, lease: Lease, max: usize) -> Result<(), Fault> {
        let address = lease.placement.address;
        self.accept_epoch(address, lease.epoch)?;
        if let Some(other) = self.leases.get(&address) {
            let message = format!("cannot add {address}: {} holds it on this broker", other.holder);
            return Err(Fault::new(FaultCode::InUse, &message)
                .subject(&other.holder.to_string())
                .remedy("have its holder remove it first"));
        }
        if self.leases.len() >= MAX_LEASES {
            let message =
                format!("cannot add {address}: the broker holds its limit of {MAX_LEASES} addresses");
            return Err(Fault::new(FaultCode::Quota, &message).remedy("remove some first"));
        }
        let held = self.counts.get(&lease.holder).copied().unwrap_or_default();
        if held >= max {
            let message = format!(
                "cannot add {address}: {} holds {held} addresses, and its limit is {max}",
                lease.holder
            );
            return Err(Fault::new(FaultCode::Quota, &message)
                .remedy("remove some, or raise max_addresses in the broker scope"));
        }
        self.insert(lease);
        Ok(())
    }

    /// Inserts the lease of an address that has none, without any check.
    pub fn insert(&mut self, lease: Lease) {
        let address = lease.placement.address;
        *self.counts.entry(lease.holder).or_default() += 1;
        self.followers.insert(lease.follows, address);
        self.leases.insert(address, lease);
    }

    /// Refuses the epoch of an older owner, and remembers a newer one.
    fn accept_epoch(&mut self, address: IpAddr, epoch: u64) -> Result<(), Fault> {
        let current = self.leases.get(&address).map(|lease| lease.epoch);
        let past = self.past.get(&address).map(|past| past.epoch);
        let newest = current.into_iter().chain(past).max().unwrap_or(0);
        if epoch < newest {
            let message = format!("epoch {epoch} of {address} is older than its newest epoch, {newest}");
            return Err(Fault::new(FaultCode::Expired, &message)
                .subject(&newest.to_string())
                .remedy("a newer owner has the address; request it again from the coordinator"));
        }
        if let Some(lease) = self.leases.get_mut(&address) {
            lease.epoch = epoch;
        }
        Ok(())
    }

    /// The live lease of an address, for its holder; `None` finds the lease of any holder.
    ///
    /// # Errors
    /// NotFound, Busy while the address is being added, Expired for an expired lease or an old epoch.
    pub fn find_for(
        &mut self,
        address: IpAddr,
        holder: Option<Holder>,
        epoch: u64,
        now: BootTime,
    ) -> Result<&mut Lease, Fault> {
        self.accept_epoch(address, epoch)?;
        match self.leases.get_mut(&address) {
            Some(lease) if holder.is_some_and(|holder| holder != lease.holder) => Err(no_lease(address)),
            Some(lease) if lease.state == LeaseState::Adding => {
                Err(Fault::new(FaultCode::Busy, &format!("{address} is being added"))
                    .remedy("wait for the reply to that request"))
            }
            Some(lease) if lease.is_expired(now) => Err(lease_expired(address)),
            Some(lease) => Ok(lease),
            None if self.past.get(&address).is_some_and(|past| past.expired) => Err(lease_expired(address)),
            None => Err(no_lease(address)),
        }
    }

    /// The lease of an address, of any holder and in any state.
    pub fn get(&self, address: IpAddr) -> Option<&Lease> {
        self.leases.get(&address)
    }

    /// As [`LeaseTable::get`], to change it.
    pub fn get_mut(&mut self, address: IpAddr) -> Option<&mut Lease> {
        self.leases.get_mut(&address)
    }

    /// Removes a lease and remembers its epoch; `expired` if the lease expired, not if a request removed it.
    pub fn remove(&mut self, address: IpAddr, expired: bool) -> Option<Lease> {
        let lease = self.leases.remove(&address)?;
        self.followers.remove(lease.follows, address);
        if let Some(count) = self.counts.get_mut(&lease.holder) {
            *count = count.saturating_sub(1);
        }
        if self.past.len() >= MAX_PAST_EPOCHS {
            self.past.retain(|_, past| past.epoch != 0);
        }
        if self.past.len() < MAX_PAST_EPOCHS {
            self.past.insert(address, PastLease { epoch: lease.epoch, expired });
        }
        Some(lease)
    }

    /// What is remembered of removed addresses.
    pub(super) fn past(&self) -> impl Iterator<Item = (IpAddr, PastLease)> {
        self.past.iter().map(|(address, past)| (*address, *past))
    }

    /// Remembers a removed address of the predecessor.
    pub(super) fn insert_past(&mut self, address: IpAddr, past: PastLease) {
        self.past.insert(address, past);
    }

    /// The followers of an address.
    pub fn followers_of(&self, address: IpAddr) -> &[IpAddr] {
        self.followers.of(address)
    }

    /// The addresses whose lease has expired.
    pub fn expired(&self, now: BootTime) -> Vec<IpAddr> {
        let expired = self.added().filter(|lease| lease.is_expired(now));
        expired.map(|lease| lease.placement.address).collect()
    }

    /// The leases that end within this time and whose holder was not notified.
    pub fn expiring(&mut self, now: BootTime, within: Duration) -> impl Iterator<Item = &mut Lease> {
        let added = self.leases.values_mut().filter(|lease| lease.state != LeaseState::Adding);
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
        self.leases.values().filter(|lease| lease.state != LeaseState::Adding)
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

fn no_lease(address: IpAddr) -> Fault {
    Fault::new(FaultCode::NotFound, &format!("{address} has no lease, or another peer holds it"))
}

#[cfg(test)]
mod tests;
