//! Addresses and links on the wire: what is asked of them, and what comes back.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::endpoint::MAX_INTERFACE;
use crate::message::Outcome;

/// How many addresses one request can name.
pub const MAX_ADDRESSES: usize = 256;
/// How many addresses one page of a list has.
pub const ADDRESS_PAGE: usize = 256;

/// Asks that addresses be put on the interfaces that the configuration names for them. Asking again for an address that
/// this peer has renews it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddAddress {
    /// Which ones.
    pub addresses: List<IpAddr, MAX_ADDRESSES>,
    /// Seconds until each goes by itself unless it is renewed, from 3 on; the configuration's where absent. 0 for ever, where
    /// a permit says so.
    pub lease: Option<u32>,
    /// The number of this ownership, from whoever decides which host has the address; 0 where nobody does. One that is
    /// older than the newest that the broker has seen for the address is refused.
    pub epoch: u64,
    /// How often to ask whether another host has it before it is added, up to 3, 200 ms apart; 0 not to ask. For IPv6
    /// anything but 0 leaves the asking to the kernel, RFC 4862 section 5.4.
    pub probes: u8,
    /// Whether to tell the neighbours.
    pub announce: bool,
}

/// Asks for another lease, from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewAddress {
    /// Of which addresses.
    pub addresses: List<IpAddr, MAX_ADDRESSES>,
    /// Seconds; as long as the last one where absent, 0 as in [`AddAddress`].
    pub lease: Option<u32>,
    /// As in [`AddAddress`].
    pub epoch: u64,
}

/// Asks that addresses be taken away, with their listeners and connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveAddress {
    /// Which ones.
    pub addresses: List<IpAddr, MAX_ADDRESSES>,
    /// As in [`AddAddress`].
    pub epoch: u64,
}

/// Asks that the neighbours be told again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// Of which addresses.
    pub addresses: List<IpAddr, MAX_ADDRESSES>,
    /// As in [`AddAddress`].
    pub epoch: u64,
}

/// Asks that addresses be taken from the interface that they are on to another of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveAddress {
    /// Which ones.
    pub addresses: List<IpAddr, MAX_ADDRESSES>,
    /// To which interface: one that a topology block of theirs names, or that this peer may change.
    pub interface: Text<MAX_INTERFACE>,
    /// As in [`AddAddress`].
    pub epoch: u64,
    /// Whether to tell the neighbours; those of an address that was announced before are told in any case.
    pub announce: bool,
}

/// An address that this host has for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// The interface that it is on.
    pub interface: Text<MAX_INTERFACE>,
    /// The prefix length that it is on it with.
    pub prefix: u8,
    /// Milliseconds until it goes by itself, by CLOCK_BOOTTIME; the greatest number where it never does.
    pub remaining_ms: u64,
    /// The number of this ownership.
    pub epoch: u64,
    /// The address that it follows: it came with that one and goes with it.
    pub follows: Option<IpAddr>,
}

/// The reply to what is asked of many addresses: a result each, in the order of the request, and then one for each
/// address that follows one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// The results.
    pub results: List<Outcome<Lease>, MAX_ADDRESSES>,
}

/// An address that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The address.
    pub address: IpAddr,
    /// Whether the host's routes were seen to have it no more. Where this is false somebody else put it elsewhere on
    /// this host, or the kernel did not say.
    pub verified: bool,
}

/// The reply to [`RemoveAddress`], in the order of the request and then of those that followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removals {
    /// The results.
    pub results: List<Outcome<Removal>, MAX_ADDRESSES>,
}

/// Asks which addresses the broker has put on interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListAddresses {
    /// List those after this one, IPv4 before IPv6; absent to begin.
    pub after: Option<IpAddr>,
}

/// One row of a list of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRow {
    /// The address and its lease.
    pub lease: Lease,
    /// Whose it is.
    pub holder: Text<64>,
    /// Whether it is on its interface now: not while it is being added, and not after somebody took it away.
    pub present: bool,
}

/// The reply to [`ListAddresses`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPage {
    /// Whether packet filter rules of the broker's silence each address at the instant that its lease ends.
    pub fenced: bool,
    /// A page of the addresses.
    pub addresses: List<AddressRow, ADDRESS_PAGE>,
    /// Whether more follow after the last of them.
    pub more: bool,
}

/// Asks that an interface be set up or down or to another MTU; what is absent stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLink {
    /// Its name.
    pub interface: Text<MAX_INTERFACE>,
    /// Up or down.
    pub up: Option<bool>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
}

/// The reply to [`SetLink`]: the interface as it is then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub interface: Text<MAX_INTERFACE>,
    /// Its number.
    pub index: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it has a carrier too.
    pub carrier: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
}
