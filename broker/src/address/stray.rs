//! Finds floating addresses on this host that do not carry the broker's tag: strays that another program left, or the
//! host's own addresses. Data only.
//!
//! Promises: an address counts as a stray only if the broker itself would add it there, as a single address, and only while
//! its interface has another address of the same family that is not a floating address.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::sys::rtnl::{HostAddress, Placement, host_prefix};

/// Floating addresses without the tag.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Untagged {
    /// These may be removed.
    pub strays: Vec<Placement>,
    /// These are the host's own: the removal of one could disconnect the host.
    pub host_owned: Vec<IpAddr>,
}

impl Untagged {
    /// Finds them among the addresses of the host; `declared` has the configured placement of each floating address.
    pub fn find(present: &[HostAddress], declared: &HashMap<IpAddr, Placement>) -> Self {
        let mut untagged = Self::default();
        for one in present.iter().filter(|one| !one.tagged) {
            let Some(configured) = declared.get(&one.placement.address) else { continue };
            let is_single = one.placement.prefix == host_prefix(one.placement.address);
            if *configured == one.placement
                && is_single
                && present.iter().any(|other| keeps_connected(other, one, declared))
            {
                untagged.strays.push(one.placement);
            } else {
                untagged.host_owned.push(one.placement.address);
            }
        }
        untagged
    }
}

/// Whether `other` keeps the interface of `one` connected without it.
fn keeps_connected(other: &HostAddress, one: &HostAddress, declared: &HashMap<IpAddr, Placement>) -> bool {
    let address = other.placement.address;
    let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    other.placement.index == one.placement.index
        && address.is_ipv4() == one.placement.address.is_ipv4()
        && !(other.tagged || is_link_local || declared.contains_key(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(text: &str, index: u32, tagged: bool) -> HostAddress {
        let (address, prefix) = text.split_once('/').unwrap();
        let placement =
            Placement { address: address.parse().unwrap(), index, prefix: prefix.parse().unwrap() };
        HostAddress { placement, tagged, tentative: false, duplicate: false }
    }

    #[test]
    fn a_stray_is_beside_a_host_address_and_where_the_broker_would_add_it() {
        let at = |text: &str| present(text, 2, false).placement;
        let declared: HashMap<IpAddr, Placement> =
            ["10.1.1.7/32", "10.1.1.8/32", "2001:db8::7/128"].map(|text| (at(text).address, at(text))).into();
        for (beside, one, is_stray) in [
            ("10.1.1.1/24", present("10.1.1.7/32", 2, false), true),
            ("2001:db8::1/64", present("2001:db8::7/128", 2, false), true),
            // With the prefix of the interface's subnet.
            ("10.1.1.1/24", present("10.1.1.7/24", 2, false), false),
            // On another interface.
            ("10.1.1.1/24", present("10.1.1.7/32", 3, false), false),
            // The interface has no other address of its own.
            ("10.1.1.8/32", present("10.1.1.7/32", 2, false), false),
            ("2001:db8::1/64", present("10.1.1.7/32", 2, false), false),
            ("fe80::1/64", present("2001:db8::7/128", 2, false), false),
        ] {
            let untagged = Untagged::find(&[present(beside, 2, false), one], &declared);
            assert_eq!(untagged.strays.contains(&one.placement), is_stray, "{one:?} beside {beside}");
            assert_eq!(
                untagged.host_owned.contains(&one.placement.address),
                !is_stray,
                "{one:?} beside {beside}"
            );
        }
        let others = [present("10.1.1.1/24", 2, false), present("10.1.1.7/32", 2, true)];
        assert_eq!(Untagged::find(&others, &declared), Untagged::default());
    }
}
