//! Messages about IP addresses and network interfaces.
//!
//! The broker adds an address to an interface under a lease: the address is removed when the lease expires, unless
//! its owner renews it. The owner of a lease is the worker or a Unix user, not a session.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::endpoint::MAX_INTERFACE;
use crate::message::Outcome;
use crate::trailing::Trailing;

/// The maximum number of addresses in one request, followers included.
pub const MAX_ADDRESSES: usize = 256;
/// The maximum number of rows in one [`AddressPage`].
pub const ADDRESS_PAGE: usize = 256;

/// Request: add addresses to the interfaces that the configured topology assigns them to. Adding an address that this
/// peer already owns renews its lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddAddress {
    /// The addresses.
    pub addresses: List<IpAddr, MAX_ADDRESSES>,
    /// Lease duration in seconds, at least 3. `None` uses the configured default. 0 makes the address permanent, which
    /// needs a permit with `permanent = true`.
    pub lease: Option<u32>,
    /// Fencing token: the party that decides which host owns the address increases it with each change of owner. The
    /// broker refuses a request whose epoch is lower than the highest one it has seen for the address from the same owner,
    /// or from root. 0 if unused.
    pub epoch: u64,
    /// Number of ARP probes (RFC 5227) before the address is added: 0 to 3, 200 ms apart; 0 disables probing. For IPv6
    /// any other value than 0 selects the kernel's duplicate address detection (RFC 4862 section 5.4).
    pub probes: u8,
    /// Announce the address to the neighbours: gratuitous ARP, or unsolicited neighbour advertisements for IPv6.
    pub announce: bool,
    /// The end of the lease in place of its duration, in nanoseconds of the broker's CLOCK_BOOTTIME: however late the request
    /// is handled, the lease ends then, or up to a second before, because the kernel counts whole seconds. At least 1 s and at most 86400 s from now; `lease` must be `None`.
    pub until: Trailing<u64>,
}

/// Request: restart the leases of addresses from now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewAddress {
    /// The addresses.
    pub addresses: List<IpAddr, MAX_ADDRESSES>,
    /// Lease duration in seconds. `None` keeps the previous duration. 0 as in [`AddAddress`].
    pub lease: Option<u32>,
    /// As in [`AddAddress`].
    pub epoch: u64,
    /// As in [`AddAddress`].
    pub until: Trailing<u64>,
}

/// Request: restart the leases of all addresses that this peer has, except permanent ones. The kernel gets one change, however
/// many they are. An address without a permit keeps the deadline that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewAll {
    /// Lease duration in seconds, at least 3. `None` uses the configured default.
    pub lease: Option<u32>,
    /// The end of the leases in place of their duration, as in [`AddAddress`].
    pub until: Option<u64>,
}

/// The reply to [`RenewAll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewedAll {
    /// The broker's CLOCK_BOOTTIME in nanoseconds when it replied.
    pub now: u64,
    /// The end of every renewed lease, on the same clock.
    pub deadline: u64,
    /// The number of renewed leases.
    pub renewed: u32,
    /// The number of this peer's leases that were not renewed: permanent, expired, being added, without a permit, or of an
    /// address that is not on its interface. [`ListAddresses`] names them.
    pub not_renewed: u32,
    /// What ends the leases if the broker does not.
    pub bounds: Bounds,
}

/// What ends the leases of each family even if the broker does not, and so how long an address can answer after its deadline:
///
/// - the fence: at most 10 ms, or 15 ms if the kernel counts 100 ticks a second;
/// - otherwise the lifetime of the address in the kernel: an IPv4 address at most 1.14 s or an eighth of the lease, whichever is
///   longer; an IPv6 address at most 15 s, on a busy host. More than 64 addresses that are renewed by [`RenewAll`] have longer
///   lifetimes; they count if another program removes the fence while no broker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// The fence ends the leases of IPv4 addresses, as the kernel reports.
    pub ipv4_fenced: bool,
    /// The same for IPv6 addresses.
    pub ipv6_fenced: bool,
}

/// Request: remove addresses. The broker first stops their listeners and resets their connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveAddress {
    /// The addresses.
    pub addresses: List<IpAddr, MAX_ADDRESSES>,
    /// As in [`AddAddress`].
    pub epoch: u64,
}

/// Request: announce addresses to the neighbours again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// The addresses.
    pub addresses: List<IpAddr, MAX_ADDRESSES>,
    /// As in [`AddAddress`].
    pub epoch: u64,
}

/// Request: move addresses from their current interface to another interface of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveAddress {
    /// The addresses.
    pub addresses: List<IpAddr, MAX_ADDRESSES>,
    /// The target interface. Either a topology block of the addresses names it, or this peer is allowed to change it.
    pub interface: Text<MAX_INTERFACE>,
    /// As in [`AddAddress`].
    pub epoch: u64,
    /// Announce the addresses on the new interface. An address that was announced before is announced in any case.
    pub announce: bool,
}

/// An address that the broker manages, and its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// The interface that has the address.
    pub interface: Text<MAX_INTERFACE>,
    /// The prefix length of the address on that interface.
    pub prefix: u8,
    /// Milliseconds until the lease expires, by CLOCK_BOOTTIME; `u64::MAX` if the address is permanent.
    pub remaining_ms: u64,
    /// The epoch of this lease; see [`AddAddress`].
    pub epoch: u64,
    /// The address that this one follows (`duravip_follow`): both are added, moved and removed together.
    pub follows: Option<IpAddr>,
}

/// The reply to the requests about leases: one result per address in the order of the request, then one result per
/// address that follows one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// The results.
    pub results: List<Outcome<Lease>, MAX_ADDRESSES>,
    /// The deadlines, one per result; 0 for a fault.
    pub times: Trailing<LeaseTimes>,
}

/// The deadlines of leases; in sessions with [`Features::LEASE_TIMES`](crate::message::Features::LEASE_TIMES) only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTimes {
    /// The broker's CLOCK_BOOTTIME in nanoseconds when it replied. A process in another time namespace has another clock;
    /// see time_namespaces(7).
    pub now: u64,
    /// The end of each lease, on the same clock; `u64::MAX` if the address is permanent.
    pub deadlines: List<u64, MAX_ADDRESSES>,
}

/// An address that the broker removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The address.
    pub address: IpAddr,
    /// The kernel's routing tables confirm that this host no longer has the address. If false, another program added
    /// it to another interface of this host, or the kernel did not answer.
    pub verified: bool,
}

/// The reply to [`RemoveAddress`]: one result per address in the order of the request, then one per follower.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removals {
    /// The results.
    pub results: List<Outcome<Removal>, MAX_ADDRESSES>,
}

/// Request: list the addresses that the broker manages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListAddresses {
    /// Start after this address; IPv4 addresses sort before IPv6 addresses. `None` starts at the first one.
    pub after: Option<IpAddr>,
}

/// One row of an [`AddressPage`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRow {
    /// The address and its lease.
    pub lease: Lease,
    /// The owner of the lease: `the worker`, or a user.
    pub holder: Text<64>,
    /// The interface has the address now. False while it is being added, and after another program removed it.
    pub present: bool,
}

/// The reply to [`ListAddresses`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPage {
    /// The fence is active for each of these addresses that is present, as the kernel reports: packet filter rules drop the
    /// traffic of an address as soon as its lease expires.
    pub fenced: bool,
    /// One page of addresses.
    pub addresses: List<AddressRow, ADDRESS_PAGE>,
    /// More addresses follow. Request the next page with `after` set to the last address of this one.
    pub more: bool,
    /// The deadlines, one per address.
    pub times: Trailing<PageTimes>,
}

/// The deadlines of a page, and what ends the leases; in sessions with
/// [`Features::LEASE_TIMES`](crate::message::Features::LEASE_TIMES) only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageTimes {
    /// The deadlines; 0 while an address is being added.
    pub leases: LeaseTimes,
    /// What ends the leases if the broker does not.
    pub bounds: Bounds,
}

/// Request: set an interface up or down, or change its MTU. A field that is `None` stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLink {
    /// The interface's name.
    pub interface: Text<MAX_INTERFACE>,
    /// True for up, false for down.
    pub up: Option<bool>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
}

/// The reply to [`SetLink`]: the state of the interface after the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The interface's name.
    pub interface: Text<MAX_INTERFACE>,
    /// The interface's index; see netdevice(7).
    pub index: u32,
    /// The interface is up (IFF_UP).
    pub up: bool,
    /// The interface has a carrier.
    pub carrier: bool,
    /// The MTU in bytes.
    pub mtu: u32,
}
