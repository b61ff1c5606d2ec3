//! How addresses are asked for, and what became of each; the same for both clients.

use std::net::IpAddr;

use portreeve_protocol::Fault;
use portreeve_protocol::address::AddAddress;
use portreeve_protocol::message::Outcome;

use crate::ask;
use crate::error::Error;

/// How an address is added. The default asks the network three times and tells the neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressOptions {
    /// Seconds until it goes by itself unless it is renewed, from 3 on; the configuration's where absent. 0 for ever, where
    /// a permit of the broker's says so: such an address stays until it is removed.
    pub lease: Option<u32>,
    /// The number of this ownership, from whoever decides which host has the address; 0 where nobody does.
    pub epoch: u64,
    /// How often to ask first whether another host has it: up to 3, 200 ms each.
    pub probes: u8,
    /// Whether to tell the neighbours.
    pub announce: bool,
}

impl Default for AddressOptions {
    fn default() -> Self {
        Self { lease: None, epoch: 0, probes: 3, announce: true }
    }
}

impl AddressOptions {
    pub(crate) fn add(&self, addresses: &[IpAddr]) -> Result<AddAddress, Error> {
        let AddressOptions { lease, epoch, probes, announce } = *self;
        Ok(AddAddress { addresses: ask::list(addresses)?, lease, epoch, probes, announce })
    }
}

/// The results of many.
pub(crate) fn each<T>(outcomes: Vec<Outcome<T>>) -> Vec<Result<T, Fault>> {
    let result = |outcome| match outcome {
        Outcome::Done(done) => Ok(done),
        Outcome::Fault(fault) => Err(fault),
    };
    outcomes.into_iter().map(result).collect()
}
