//! The kernel's neighbour tables (ARP and NDP) and the gateways of its routes.
//!
//! Reads only. See rtnetlink(7) and arp(7).

use std::net::IpAddr;

use netlink_packet_core::NlasIterator;
use nix::errno::Errno;

use super::interface::Mac;
use super::netlink::{Dump, Netlink};
use super::netlink_body::{Body, attribute};
use super::rtnl::{INET, RTA_OIF, RTMSG, family, ip};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
/// The length of struct ndmsg.
const NDMSG: usize = 12;
/// The length of struct rtnexthop.
const RTNEXTHOP: usize = 8;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
/// The states of an entry whose MAC address is valid.
const VALID: [u16; 5] =
    [libc::NUD_REACHABLE, libc::NUD_STALE, libc::NUD_DELAY, libc::NUD_PROBE, libc::NUD_PERMANENT];
/// struct ndmsg or struct rtmsg that requests everything.
const ALL: Body<3> = Body { fixed: [[0; 4]; 3], attributes: Vec::new() };

/// A neighbour whose MAC address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The index of the interface that reaches it.
    pub index: u32,
    /// Its MAC address.
    pub mac: Mac,
    /// Its IP address.
    pub address: IpAddr,
}

/// A gateway of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// The index of the interface that reaches it.
    pub index: u32,
    /// Its IP address. A route of IPv4 can have a gateway of IPv6.
    pub address: IpAddr,
    /// Whether the route is one of IPv4.
    pub is_of_ipv4: bool,
}

/// Lists the neighbours of the host. See rtnetlink(7), RTM_GETNEIGH; Linux 2.2.
///
/// # Capabilities
/// None.
///
/// # Errors
/// The kernel's refusal; EINTR as [`Netlink::dump`].
pub fn list(netlink: &Netlink) -> Result<Vec<Neighbour>, Errno> {
    netlink.dump(RTM_GETNEIGH, &ALL, |kind, body| if kind == RTM_NEWNEIGH { neighbour(body) } else { None })
}

/// Begins to list the routes of the host. See rtnetlink(7), RTM_GETROUTE; Linux 2.2.
///
/// # Capabilities
/// None.
///
/// # Errors
/// Those of [`Netlink::begin_dump`].
pub fn begin_routes(netlink: &Netlink) -> Result<Dump, Errno> {
    netlink.begin_dump(RTM_GETROUTE, &ALL)
}

/// Receives the next some hundreds of routes, and passes their gateways to `found`; `None` for a route whose gateways the kernel
/// does not tell. Returns whether more follow.
///
/// # Capabilities
/// None.
///
/// # Errors
/// Those of [`Netlink::continue_dump`].
pub fn continue_routes(
    netlink: &Netlink,
    dump: &mut Dump,
    mut found: impl FnMut(Option<Gateway>),
) -> Result<bool, Errno> {
    netlink.continue_dump(dump, |kind, body| {
        if kind == RTM_NEWROUTE {
            gateways(body, &mut found);
        }
    })
}

fn neighbour(body: &[u8]) -> Option<Neighbour> {
    let (words, _) = body.as_chunks::<4>();
    let &[[protocol, ..], index, [first, second, ..], ..] = words else { return None };
    if !VALID.contains(&u16::from_ne_bytes([first, second])) {
        return None;
    }
    let attributes = body.get(NDMSG..)?;
    let address = ip(attribute(attributes, libc::NDA_DST)?).filter(|address| family(*address) == protocol)?;
    let mac: Mac = attribute(attributes, libc::NDA_LLADDR)?.try_into().ok()?;
    // A multicast MAC address belongs to no single host.
    (mac[0] & 1 == 0).then_some(Neighbour { index: u32::from_ne_bytes(index), mac, address })
}

/// Passes the gateways of a route to `found`. Written by hand for speed, because there may be hundreds of thousands of routes. See
/// include/uapi/linux/rtnetlink.h.
fn gateways(body: &[u8], found: &mut impl FnMut(Option<Gateway>)) {
    let is_of_ipv4 = body.first() == Some(&INET);
    let attributes = body.get(RTMSG..).unwrap_or_default();
    let (mut index, mut address, mut is_group, mut has_nexthops) = (None, None, false, false);
    for attribute in NlasIterator::new(attributes).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            RTA_OIF => index = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)),
            RTA_GATEWAY => address = ip(value),
            RTA_VIA => address = value.get(2..).and_then(ip),
            RTA_MULTIPATH => {
                has_nexthops = true;
                nexthops(value, |index, address| found(Some(Gateway { index, address, is_of_ipv4 })));
            }
            RTA_NH_ID => is_group = true,
            _ => {}
        }
    }
    match (index, address) {
        (Some(index), Some(address)) => found(Some(Gateway { index, address, is_of_ipv4 })),
        // With net.ipv4.nexthop_compat_mode = 0 the kernel tells only the number of the nexthop object.
        (None, _) if is_group && !has_nexthops => found(None),
        _ => {}
    }
}

/// Passes the interface and gateway of each nexthop of a multipath route to `found`: struct rtnexthop, and its attributes.
fn nexthops(mut rest: &[u8], mut found: impl FnMut(u32, IpAddr)) {
    while let Some(header) = rest.first_chunk::<RTNEXTHOP>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
        let Some(attributes) = rest.get(RTNEXTHOP..length) else { return };
        for attribute in NlasIterator::new(attributes).flatten() {
            let address = match attribute.kind() {
                RTA_GATEWAY => ip(attribute.value()),
                RTA_VIA => attribute.value().get(2..).and_then(ip),
                _ => None,
            };
            address.into_iter().for_each(|address| found(index, address));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DefaultNla, Emitable as _};

    use super::*;
    use crate::sys::netlink_body;

    /// What the kernel reports of a neighbour at interface 3.
    fn parse(protocol: u8, state: u16, address: &str, mac: &[u8]) -> Option<Neighbour> {
        let [first, second] = state.to_ne_bytes();
        let fixed = [[protocol, 0, 0, 0], 3_u32.to_ne_bytes(), [first, second, 0, 0]];
        let address = netlink_body::address(libc::NDA_DST, address.parse().unwrap());
        let message =
            Body { fixed, attributes: vec![address, DefaultNla::new(libc::NDA_LLADDR, mac.to_vec())] };
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        // The last bytes may be padding.
        (0..bytes.len() - 4)
            .for_each(|length| assert_eq!(neighbour(&bytes[..length]), None, "cut at {length}"));
        neighbour(&bytes)
    }

    #[test]
    fn a_neighbour_has_a_valid_state_an_ip_address_and_the_mac_address_of_one_host() {
        let known = Neighbour { index: 3, mac: [2; 6], address: "10.0.0.1".parse().unwrap() };
        assert_eq!(parse(INET, libc::NUD_STALE, "10.0.0.1", &[2; 6]), Some(known));
        assert!(parse(10, libc::NUD_PERMANENT, "fd00::1", &[2; 6]).is_some());
        assert_eq!(parse(INET, libc::NUD_NOARP, "10.0.0.1", &[2; 6]), None);
        assert_eq!(parse(INET, libc::NUD_STALE, "10.0.0.1", &[3; 6]), None);
        assert_eq!(parse(INET, libc::NUD_STALE, "10.0.0.1", &[2; 4]), None);
        // AF_BRIDGE: an entry of a forwarding table.
        assert_eq!(parse(7, libc::NUD_PERMANENT, "10.0.0.1", &[2; 6]), None);
    }
}
