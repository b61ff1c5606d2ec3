//! Warns, once for each interface, if it has so many IPv6 addresses that the kernel becomes slow.
//!
//! The kernel joins a multicast group for the low 24 bits of each address (RFC 4291 section 2.7.1), and walks the list of
//! groups at every change: ten thousand groups take a minute to add. Addresses with the same low 24 bits share a group.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::IpAddr;

use super::lease_table::LeaseTable;
use crate::sys::rtnl::Placement;

/// The number of groups on one interface above which the broker warns.
const MAX_GROUPS: usize = 1_000;

/// The interfaces that a warning was logged for.
#[derive(Debug, Default)]
pub(super) struct MulticastLimit {
    warned: RefCell<HashSet<u32>>,
}

impl MulticastLimit {
    /// Checks the interfaces of added addresses.
    pub fn check(&self, table: &LeaseTable, added: &[Placement]) {
        let added = added.iter().filter(|placement| placement.address.is_ipv6());
        let interfaces: HashSet<u32> = added.map(|placement| placement.index).collect();
        let mut warned = self.warned.borrow_mut();
        for index in interfaces {
            let groups = groups(table, index);
            if groups > MAX_GROUPS && warned.insert(index) {
                tracing::warn!(
                    index,
                    groups,
                    "so many IPv6 addresses on one interface are slow to add and remove; choose addresses that share their low 24 bits"
                );
            }
        }
    }
}

/// The number of multicast groups that the addresses of an interface need.
fn groups(table: &LeaseTable, index: u32) -> usize {
    let on_interface = table.iter().map(|lease| lease.placement).filter(|placement| placement.index == index);
    let low_bits = |placement: Placement| match placement.address {
        IpAddr::V6(address) => Some(address.to_bits() & 0xff_ffff),
        IpAddr::V4(_) => None,
    };
    on_interface.filter_map(low_bits).collect::<HashSet<u128>>().len()
}
