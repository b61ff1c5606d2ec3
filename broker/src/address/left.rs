//! What stands on the host of addresses that are declared to move and does not carry the broker's tag: left there by
//! another program, or the host's own.
//!
//! Promises: an address is taken for left only where the broker itself would have put it, as a host alone, and only
//! while its interface has one beside it that is not declared to move. Data only: touches nothing.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::sys::rtnl::{Place, Present};

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Untagged {
    /// May go.
    pub left: Vec<Place>,
    /// Taking one of these away could take the host off its network.
    pub own: Vec<IpAddr>,
}

impl Untagged {
    /// Looks for addresses that are declared to move, each with the place that it is to have.
    pub fn among(present: &[Present], declared: &HashMap<IpAddr, Place>) -> Self {
        let mut found = Self::default();
        for one in present.iter().filter(|one| !one.ours) {
            let Some(meant) = declared.get(&one.place.address) else { continue };
            let alone = one.place.prefix == bits(one.place.address);
            if *meant == one.place && alone && present.iter().any(|other| keeps(other, one, declared)) {
                found.left.push(one.place);
            } else {
                found.own.push(one.place.address);
            }
        }
        found
    }
}

/// Whether an interface has another address of its own beside one.
fn keeps(other: &Present, one: &Present, declared: &HashMap<IpAddr, Place>) -> bool {
    let address = other.place.address;
    let is_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    other.place.index == one.place.index
        && address.is_ipv4() == one.place.address.is_ipv4()
        && !(other.ours || is_local || declared.contains_key(&address))
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(text: &str, index: u32, ours: bool) -> Present {
        let (address, prefix) = text.split_once('/').unwrap();
        let place = Place { address: address.parse().unwrap(), index, prefix: prefix.parse().unwrap() };
        Present { place, ours, tentative: false, duplicate: false }
    }

    #[test]
    fn an_address_is_left_only_beside_an_own_one_and_where_the_broker_would_have_put_it() {
        let at = |text: &str| present(text, 2, false).place;
        let declared: HashMap<IpAddr, Place> =
            ["10.1.1.7/32", "10.1.1.8/32", "2001:db8::7/128"].map(|text| (at(text).address, at(text))).into();
        for (beside, one, is_left) in [
            ("10.1.1.1/24", present("10.1.1.7/32", 2, false), true),
            ("2001:db8::1/64", present("2001:db8::7/128", 2, false), true),
            // Its subnet is the interface's.
            ("10.1.1.1/24", present("10.1.1.7/24", 2, false), false),
            // Elsewhere.
            ("10.1.1.1/24", present("10.1.1.7/32", 3, false), false),
            // Without it the interface would have none that stays.
            ("10.1.1.8/32", present("10.1.1.7/32", 2, false), false),
            ("2001:db8::1/64", present("10.1.1.7/32", 2, false), false),
            ("fe80::1/64", present("2001:db8::7/128", 2, false), false),
        ] {
            let found = Untagged::among(&[present(beside, 2, false), one], &declared);
            assert_eq!(found.left.contains(&one.place), is_left, "{one:?} beside {beside}");
            assert_eq!(found.own.contains(&one.place.address), !is_left, "{one:?} beside {beside}");
        }
        let others = [present("10.1.1.1/24", 2, false), present("10.1.1.7/32", 2, true)];
        assert_eq!(Untagged::among(&others, &declared), Untagged::default());
    }
}
