//! A lease: who holds an address, where it is, and until when. Data only.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use portreeve_protocol::{Text, address};

use super::lease_end::LeaseEnd;
use crate::holder::Holder;
use crate::sys::BootTime;
use crate::sys::rtnl::{Lifetime, Placement};

/// The shortest lifetime of an address in the kernel.
pub(super) const MIN_LIFETIME: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The state of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// The broker probes whether another host has it; this host does not have it yet.
    Probing,
    /// It is being added: the fence is open for it, and duplicate address detection may be running.
    Adding,
    /// It is on its interface.
    Held,
    /// Another program removed it, or its interface was deleted.
    Missing,
}

/// One lease.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The address and its interface.
    pub placement: Placement,
    /// The name of that interface.
    pub interface: Text<15>,
    /// The owner.
    pub holder: Holder,
    /// The time from a renewal to the end; `None` for a permanent address.
    pub lifetime: Lifetime,
    /// The end; `None` for a permanent address.
    pub deadline: Option<BootTime>,
    /// Whether its holder renews it with all others: then the fence lets the address pass while it has the holder.
    pub renewed_with_all: bool,
    /// When the kernel removes the address, which is no earlier than the end if the holder renews it with all others; `None`
    /// for a permanent address.
    pub kernel_deadline: Option<BootTime>,
    /// Whether the holder was notified that the lease ends soon.
    pub expiry_notified: bool,
    /// The number of this ownership, from the coordinator.
    pub epoch: u64,
    /// The address with which this one was added and is removed.
    pub follows: Option<IpAddr>,
    /// The state of the address.
    pub state: LeaseState,
    /// The current series of announcements; 0 if the address is not announced.
    pub announcement_series: u64,
    /// When it was restored after another program had removed it, within the last minute.
    pub restored: VecDeque<Instant>,
    /// Whether it is missing because its interface went down, was deleted or changed its VRF.
    pub removed_with_link: bool,
}

impl Lease {
    /// Whether the lease has expired.
    pub fn is_expired(&self, now: BootTime) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether the address is not yet added.
    pub fn is_pending(&self) -> bool {
        matches!(self.state, LeaseState::Probing | LeaseState::Adding)
    }

    /// Whether the address is on its interface.
    pub fn is_held(&self) -> bool {
        self.state == LeaseState::Held
    }

    /// Whether the address is announced to its neighbours.
    pub fn is_announced(&self) -> bool {
        self.announcement_series > 0
    }

    /// Gives the lease a new end.
    pub fn renew(&mut self, end: LeaseEnd, now: BootTime) {
        self.lifetime = end.lifetime(now);
        self.deadline = end.deadline(now);
        self.expiry_notified = false;
    }

    /// Whether the lease ends within a second, the shortest lifetime that the kernel takes.
    pub fn is_ending(&self, now: BootTime) -> bool {
        self.deadline.is_some_and(|deadline| now.duration_until(deadline) < MIN_LIFETIME)
    }

    /// When the kernel is to remove the address if it is added again.
    pub fn end_in_kernel(&self) -> Option<BootTime> {
        self.deadline.and(self.kernel_deadline.max(self.deadline))
    }

    /// Whether the address may be restored now: at most `max` times in a minute, and always if it went with its interface. If
    /// so, counts it.
    pub fn try_restore(&mut self, now: Instant, max: u32) -> bool {
        if std::mem::take(&mut self.removed_with_link) {
            return true;
        }
        self.restored.retain(|restored_at| now.duration_since(*restored_at) < MINUTE);
        let allowed = self.restored.len() < usize::try_from(max).unwrap_or(usize::MAX);
        if allowed {
            self.restored.push_back(now);
        }
        allowed
    }

    /// The deadline for the wire in nanoseconds.
    pub fn deadline_ns(&self) -> u64 {
        match self.deadline {
            Some(deadline) => deadline.as_nanos(),
            None if self.is_pending() => 0,
            None => u64::MAX,
        }
    }

    /// Converts it to the wire message.
    pub fn to_wire(&self, now: BootTime) -> address::Lease {
        let remaining =
            self.deadline.map_or(u128::from(u64::MAX), |deadline| now.duration_until(deadline).as_millis());
        address::Lease {
            address: self.placement.address,
            interface: self.interface.clone(),
            prefix: self.placement.prefix,
            remaining_ms: u64::try_from(remaining).unwrap_or(u64::MAX),
            epoch: self.epoch,
            follows: self.follows,
        }
    }
}
