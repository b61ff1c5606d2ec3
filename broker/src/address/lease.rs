//! The leases: which address is whose, until when, by which epoch. The clock goes on while the host sleeps.
//!
//! Promises: an address has one holder at a time; a lease that ended is never renewed; an epoch never goes back.
//! Data only: touches nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use portreeve_protocol::{Fault, FaultCode, Text, address};

use super::together::Followers;
use crate::holder::Holder;
use crate::sys::boot_time::BootTime;
use crate::sys::rtnl::{Lifetime, Place};

/// How many addresses the broker has at most.
pub const MOST: usize = 10_240;
/// How many addresses that are gone are remembered, for their epochs.
pub const REMEMBERED: usize = 65_536;
const A_MINUTE: Duration = Duration::from_secs(60);

/// Where an address is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Other hosts are being asked, or the kernel asks them.
    Adding,
    /// It is on its interface.
    Held,
    /// Somebody else took it away.
    Missing,
}

/// One lease.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Where the address is.
    pub place: Place,
    /// The interface's name when it was added.
    pub interface: Text<15>,
    /// Whose it is.
    pub holder: Holder,
    /// How long it was given; `None` for ever.
    pub lifetime: Lifetime,
    /// When it ends.
    pub deadline: Option<BootTime>,
    /// Whether its holder was told that it ends soon.
    pub warned: bool,
    /// The number of this ownership.
    pub epoch: u64,
    /// The address that it came with and goes with.
    pub follows: Option<IpAddr>,
    /// Where it is on its way.
    pub state: State,
    /// Which series of announcements is its present one.
    pub series: u64,
    /// When it was put back, the last minute's.
    pub put_back: VecDeque<Instant>,
}

impl Lease {
    /// Whether it has ended.
    pub fn is_over(&self, now: BootTime) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether the address is on its interface.
    pub fn is_present(&self) -> bool {
        self.state == State::Held
    }

    /// How long it lasts still, in whole seconds as the kernel takes it: downwards, for what the kernel has must not
    /// outlast it.
    pub fn left(&self, now: BootTime) -> Lifetime {
        let left = now.until(self.deadline?);
        Some(u32::try_from(left.as_secs()).unwrap_or(u32::MAX - 1))
    }

    /// Whether it ends within a second, which is less than the kernel can be told.
    pub fn is_ending(&self, now: BootTime) -> bool {
        self.left(now) == Some(0)
    }

    /// Whether it may be put back once more, at most so often in a minute; if so that is counted.
    pub fn may_be_put_back(&mut self, now: Instant, most: u32) -> bool {
        self.put_back.retain(|then| now.duration_since(*then) < A_MINUTE);
        let may = self.put_back.len() < usize::try_from(most).unwrap_or(usize::MAX);
        if may {
            self.put_back.push_back(now);
        }
        may
    }

    /// As a peer is told.
    pub fn told(&self, now: BootTime) -> address::Lease {
        let left = self.deadline.map_or(u128::from(u64::MAX), |deadline| now.until(deadline).as_millis());
        address::Lease {
            address: self.place.address,
            interface: self.interface.clone(),
            prefix: self.place.prefix,
            left_ms: u64::try_from(left).unwrap_or(u64::MAX),
            epoch: self.epoch,
            follows: self.follows,
        }
    }
}

/// All leases.
#[derive(Debug, Default)]
pub struct Table {
    leases: BTreeMap<IpAddr, Lease>,
    /// The newest epoch of addresses that are gone, and whether their lease ran out.
    pub(super) past: HashMap<IpAddr, (u64, bool)>,
    pub(super) followers: Followers,
    /// How many each holder has.
    counts: HashMap<Holder, usize>,
}

impl Table {
    /// Enters an address that is being added, for a holder that may have so many.
    ///
    /// # Errors
    /// InUse where somebody has it, Busy while it is being added, Expired for an old epoch, Quota.
    pub fn enter(&mut self, lease: Lease, most: usize) -> Result<(), Fault> {
        let address = lease.place.address;
        self.accept_epoch(address, lease.epoch)?;
        if let Some(other) = self.leases.get(&address) {
            let message = format!("{address} is {}'s of this broker", other.holder);
            return Err(Fault::new(FaultCode::InUse, &message)
                .about(&other.holder.to_string())
                .remedy("have its holder remove it"));
        }
        if self.leases.len() >= MOST {
            let message = format!("the broker holds {MOST} addresses and can hold no more");
            return Err(Fault::new(FaultCode::Quota, &message).remedy("remove some first"));
        }
        let held = self.counts.get(&lease.holder).copied().unwrap_or_default();
        if held >= most {
            let message = format!("{} has {held} addresses, and a peer may have {most}", lease.holder);
            return Err(Fault::new(FaultCode::Quota, &message)
                .remedy("remove some, or raise max_addresses in the broker scope"));
        }
        self.insert(lease);
        Ok(())
    }

    /// Enters an address that nobody has, whatever speaks against it.
    pub fn insert(&mut self, lease: Lease) {
        let address = lease.place.address;
        *self.counts.entry(lease.holder).or_default() += 1;
        self.followers.enter(lease.follows, address);
        self.leases.insert(address, lease);
    }

    /// Refuses what an older owner asks, and remembers the newer one.
    fn accept_epoch(&mut self, address: IpAddr, epoch: u64) -> Result<(), Fault> {
        let now = self.leases.get(&address).map(|lease| lease.epoch);
        let newest = now.into_iter().chain(self.past.get(&address).map(|past| past.0)).max().unwrap_or(0);
        if epoch < newest {
            let message = format!("epoch {epoch} of {address} is older than {newest}");
            return Err(Fault::new(FaultCode::Expired, &message)
                .about(&newest.to_string())
                .remedy("another host was given the address; ask for it anew"));
        }
        if let Some(lease) = self.leases.get_mut(&address) {
            lease.epoch = epoch;
        }
        Ok(())
    }

    /// The lease of an address, for who holds it; `None` may have anyone's.
    ///
    /// # Errors
    /// NotFound, Busy while it is being added, Expired for a lease that ended or an old epoch.
    pub fn of(
        &mut self,
        address: IpAddr,
        holder: Option<Holder>,
        epoch: u64,
        now: BootTime,
    ) -> Result<&mut Lease, Fault> {
        self.accept_epoch(address, epoch)?;
        match self.leases.get_mut(&address) {
            Some(lease) if holder.is_some_and(|holder| holder != lease.holder) => Err(unknown(address)),
            Some(lease) if lease.state == State::Adding => {
                Err(Fault::new(FaultCode::Busy, &format!("{address} is being added")))
            }
            Some(lease) if lease.is_over(now) => Err(over(address)),
            Some(lease) => Ok(lease),
            None if self.past.get(&address).is_some_and(|past| past.1) => Err(over(address)),
            None => Err(unknown(address)),
        }
    }

    /// The lease of an address, whoever's and in whatever state.
    pub fn get(&self, address: IpAddr) -> Option<&Lease> {
        self.leases.get(&address)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, address: IpAddr) -> Option<&mut Lease> {
        self.leases.get_mut(&address)
    }

    /// Forgets a lease but for its epoch; `ran_out` where nobody gave it back.
    pub fn remove(&mut self, address: IpAddr, ran_out: bool) -> Option<Lease> {
        let lease = self.leases.remove(&address)?;
        self.followers.leave(lease.follows, address);
        if let Some(count) = self.counts.get_mut(&lease.holder) {
            *count = count.saturating_sub(1);
        }
        if self.past.len() >= REMEMBERED {
            self.past.retain(|_, (epoch, _)| *epoch != 0);
        }
        if self.past.len() < REMEMBERED {
            self.past.insert(address, (lease.epoch, ran_out));
        }
        Some(lease)
    }

    /// The addresses whose lease has ended.
    pub fn over(&self, now: BootTime) -> Vec<IpAddr> {
        let over = self.leases.values().filter(|lease| lease.state != State::Adding && lease.is_over(now));
        over.map(|lease| lease.place.address).collect()
    }

    /// Those that end within this time and whose holder does not know it yet.
    pub fn ending(&mut self, now: BootTime, within: Duration) -> impl Iterator<Item = &mut Lease> {
        let unwarned = self.leases.values_mut().filter(|lease| lease.state != State::Adding && !lease.warned);
        unwarned.filter(move |lease| lease.deadline.is_some_and(|deadline| now.until(deadline) <= within))
    }

    /// When the next one ends.
    pub fn next_end(&self) -> Option<BootTime> {
        let added = self.leases.values().filter(|lease| lease.state != State::Adding);
        added.filter_map(|lease| lease.deadline).min()
    }

    /// When the next one ends, or its holder has to be told of that, so long before.
    pub fn next_due(&self, before: Duration) -> Option<BootTime> {
        let added = self.leases.values().filter(|lease| lease.state != State::Adding);
        let due = |lease: &Lease| match lease.warned {
            true => lease.deadline,
            false => lease.deadline.map(|deadline| deadline.before(before)),
        };
        added.filter_map(due).min()
    }

    /// Those that somebody took away.
    pub fn missing(&mut self) -> impl Iterator<Item = &mut Lease> {
        self.leases.values_mut().filter(|lease| lease.state == State::Missing)
    }

    /// Those on the interface of a number.
    pub fn on(&mut self, index: u32) -> impl Iterator<Item = &mut Lease> {
        self.leases.values_mut().filter(move |lease| lease.place.index == index)
    }

    /// All of them, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// The ones after an address.
    pub fn after(&self, address: Option<IpAddr>) -> impl Iterator<Item = &Lease> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.leases.range((address.map_or(Unbounded, Excluded), Unbounded)).map(|(_, lease)| lease)
    }
}

fn unknown(address: IpAddr) -> Fault {
    Fault::new(FaultCode::NotFound, &format!("{address} is no address of this peer's"))
}

/// The fault of a lease that has ended.
pub fn over(address: IpAddr) -> Fault {
    Fault::new(FaultCode::Expired, &format!("the lease of {address} has ended"))
        .remedy("add the address again")
}

#[cfg(test)]
mod tests;
