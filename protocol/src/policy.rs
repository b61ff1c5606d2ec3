//! The policy as a peer is told it: what it may ask for, and the addresses that move between hosts. A worker lives in a
//! chroot, and learns here what the configuration says of it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::endpoint::MAX_INTERFACE;

/// How many rows of each list one page has.
pub const POLICY_PAGE: usize = 64;

/// Asks what this peer may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRequest {
    /// How many rows of each list were told already; 0 to begin.
    pub after: u32,
}

/// The reply to [`PolicyRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPage {
    /// This host's name in the cluster; may be empty.
    pub nodename: Text<64>,
    /// Seconds that an address stays without renewal where the peer does not say.
    pub lease: u32,
    /// A page of the rules by which this peer may ask for something, in the order of the configuration.
    pub rules: List<PolicyRule, POLICY_PAGE>,
    /// A page of the topology, where this peer may have addresses at all.
    pub topology: List<TopologyBlock, POLICY_PAGE>,
    /// A page of the addresses that the configuration declares to move between hosts, those that this peer may have.
    pub floating: List<FloatingAddress, POLICY_PAGE>,
    /// What to ask for as `after` next; 0 when this is the last page.
    pub next: u32,
}

/// One line of the configuration that permits something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Where it stands, `file:line`.
    pub place: Text<160>,
    /// What it says, such as `permit "mail": listen *:25`.
    pub text: Text<160>,
}

/// Which addresses belong on which interface; of several blocks that hold one, the smallest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyBlock {
    /// The block's first address.
    pub block: IpAddr,
    /// The block's prefix length.
    pub prefix: u8,
    /// The interface.
    pub interface: Text<MAX_INTERFACE>,
    /// The prefix length that an address is put on it with.
    pub mask: u8,
}

/// An address that moves between hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingAddress {
    /// The address.
    pub address: IpAddr,
    /// The binding or listener that declares it.
    pub name: Text<64>,
    /// The host that should have it while that lives; may be empty.
    pub preference: Text<64>,
    /// The address that it comes and goes with.
    pub follows: Option<IpAddr>,
    /// The interface that the topology puts it on; may be empty.
    pub interface: Text<MAX_INTERFACE>,
    /// The prefix length that it has there.
    pub prefix: u8,
}
