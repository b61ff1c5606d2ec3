//! Crowds: an interface with so many IPv6 addresses that the kernel becomes slow with them is told of, once.
//!
//! The kernel joins a multicast group for the low 24 bits of each address (RFC 4291 section 2.7.1) and walks the list of
//! groups at every change: ten thousand groups take a minute to add. Addresses that share those bits share the group.

use std::collections::HashSet;
use std::net::IpAddr;

use super::Addresses;
use crate::sys::rtnl::Place;

/// As many groups as an interface bears without a word.
const MANY: usize = 1_000;

impl Addresses {
    /// Looks at the interfaces that got addresses.
    pub(super) fn warn_of_many(&self, places: &[Place]) {
        let new: HashSet<u32> =
            places.iter().filter(|place| place.address.is_ipv6()).map(|place| place.index).collect();
        let mut crowded = self.crowded.borrow_mut();
        for index in new {
            let groups = self.groups(index);
            if groups > MANY && crowded.insert(index) {
                tracing::warn!(
                    index,
                    groups,
                    "so many IPv6 addresses on one interface are slow to add and remove; let them share their low 24 bits"
                );
            }
        }
    }

    /// How many multicast groups the addresses of an interface need.
    fn groups(&self, index: u32) -> usize {
        let table = self.table.borrow();
        let here = table.iter().map(|lease| lease.place).filter(|place| place.index == index);
        let low = |place: Place| match place.address {
            IpAddr::V6(address) => Some(address.to_bits() & 0xff_ffff),
            IpAddr::V4(_) => None,
        };
        here.filter_map(low).collect::<HashSet<u128>>().len()
    }
}
