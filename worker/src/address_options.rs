//! The options of adding an address, and the results of a batch of addresses; the same for both clients.

use std::net::IpAddr;

use portreeve_protocol::address::AddAddress;
use portreeve_protocol::message::Outcome;
use portreeve_protocol::{Fault, Trailing};

use crate::build;
use crate::error::Error;

/// How an address is added. By default it is probed three times and announced, and has the configured lease.
///
/// ```
/// use portreeve::AddressOptions;
///
/// const FAILOVER: AddressOptions = AddressOptions::new().lease(30).epoch(7);
/// assert_eq!(FAILOVER.probes, 3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AddressOptions {
    /// Length of the lease in seconds, at least 3; the configured length if absent. 0 is a permanent address, which stays
    /// until it is removed and needs a permit that allows it.
    pub lease: Option<u32>,
    /// End of the lease in place of its length, in nanoseconds of the broker's CLOCK_BOOTTIME, however late the broker handles the
    /// request: at least 1 s and at most 86400 s from now. Brokers of earlier releases do not take it.
    pub until: Option<u64>,
    /// Epoch of the ownership, from the cluster manager that decides which host has the address; 0 if unused.
    pub epoch: u64,
    /// Number of probes for another host that has the address: up to 3, 200 ms each.
    pub probes: u8,
    /// Whether the address is announced to the neighbours.
    pub announce: bool,
}

impl Default for AddressOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl AddressOptions {
    /// The configured lease, epoch 0, three probes, and an announcement.
    #[must_use]
    pub const fn new() -> Self {
        Self { lease: None, until: None, epoch: 0, probes: 3, announce: true }
    }

    /// Sets [`lease`](Self::lease).
    #[must_use]
    pub const fn lease(self, seconds: u32) -> Self {
        Self { lease: Some(seconds), ..self }
    }

    /// Sets [`until`](Self::until).
    #[must_use]
    pub const fn until(self, nanoseconds: u64) -> Self {
        Self { until: Some(nanoseconds), ..self }
    }

    /// Sets [`epoch`](Self::epoch).
    #[must_use]
    pub const fn epoch(self, epoch: u64) -> Self {
        Self { epoch, ..self }
    }

    /// Sets [`probes`](Self::probes).
    #[must_use]
    pub const fn probes(self, count: u8) -> Self {
        Self { probes: count, ..self }
    }

    /// Sets [`announce`](Self::announce).
    #[must_use]
    pub const fn announce(self, on: bool) -> Self {
        Self { announce: on, ..self }
    }

    pub(crate) fn to_wire(self, addresses: &[IpAddr]) -> Result<AddAddress, Error> {
        let AddressOptions { lease, until, epoch, probes, announce } = self;
        let (addresses, until) = (build::list("addresses", addresses)?, Trailing(until));
        Ok(AddAddress { addresses, lease, epoch, probes, announce, until })
    }
}

/// The results of a batch, one for each address.
pub(crate) fn results<T>(outcomes: Vec<Outcome<T>>) -> Vec<Result<T, Fault>> {
    let result = |outcome| match outcome {
        Outcome::Done(done) => Ok(done),
        Outcome::Fault(fault) => Err(fault),
    };
    outcomes.into_iter().map(result).collect()
}
