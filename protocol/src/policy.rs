//! Messages about the policy that applies to the requesting peer: its rules, the topology and the floating addresses.
//!
//! A worker in a chroot cannot read the broker's configuration; it requests its policy from the broker instead.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::endpoint::MAX_INTERFACE;

/// The maximum number of rows of each list in one [`PolicyPage`].
pub const POLICY_PAGE: usize = 64;

/// Request: return the policy that applies to this peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRequest {
    /// The number of rows of each list to skip; 0 starts at the first row.
    pub after: u32,
}

/// The reply to [`PolicyRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPage {
    /// The name of this host in the cluster; may be empty.
    pub nodename: Text<64>,
    /// The default lease duration in seconds.
    pub lease: u32,
    /// One page of the rules that allow this peer a request, in the order of the configuration.
    pub rules: List<PolicyRule, POLICY_PAGE>,
    /// One page of the topology; empty if this peer is not allowed to have addresses.
    pub topology: List<TopologyBlock, POLICY_PAGE>,
    /// One page of the configured floating addresses that this peer is allowed to add.
    pub floating: List<FloatingAddress, POLICY_PAGE>,
    /// The value of `after` for the next page; 0 if this page is the last.
    pub next: u32,
}

/// One line of the configuration that allows a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// The position of the line, as `file:line`.
    pub place: Text<160>,
    /// The rule, such as `permit "mail": listen *:25`.
    pub text: Text<160>,
}

/// A block of addresses and the interface that they belong to. If several blocks contain an address, the one with the
/// longest prefix applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyBlock {
    /// The first address of the block.
    pub block: IpAddr,
    /// The prefix length of the block.
    pub prefix: u8,
    /// The interface for the addresses of the block.
    pub interface: Text<MAX_INTERFACE>,
    /// The prefix length with which an address is added to the interface.
    pub mask: u8,
}

/// A floating address: an address that moves between hosts (`enable_duravip`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingAddress {
    /// The address.
    pub address: IpAddr,
    /// The name of the binding or listener that declares it.
    pub name: Text<64>,
    /// The name of the preferred host; may be empty.
    pub preference: Text<64>,
    /// The address that it follows (`duravip_follow`): both are added and removed together.
    pub follows: Option<IpAddr>,
    /// The interface according to the topology; empty if no block contains the address.
    pub interface: Text<MAX_INTERFACE>,
    /// The prefix length on that interface.
    pub prefix: u8,
}
