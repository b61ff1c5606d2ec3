//! The kernel's neighbour tables (ARP and NDP) and the gateways of its routes.
//!
//! Reads only. See rtnetlink(7) and arp(7).

use std::net::IpAddr;

use netlink_packet_core::Parseable as _;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use nix::errno::Errno;

use super::Netlink;
use super::interface::Mac;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
/// The states of an entry whose MAC address is valid.
const VALID: [NeighbourState; 5] = [
    NeighbourState::Reachable,
    NeighbourState::Stale,
    NeighbourState::Delay,
    NeighbourState::Probe,
    NeighbourState::Permanent,
];

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

/// A gateway, and the index of the interface that reaches it.
pub type Gateway = (u32, IpAddr);

/// Lists the neighbours of the host. See rtnetlink(7), RTM_GETNEIGH; Linux 2.2.
///
/// # Capabilities
/// None.
///
/// # Errors
/// The kernel's refusal; EINTR as [`Netlink::dump`].
pub fn list(netlink: &Netlink) -> Result<Vec<Neighbour>, Errno> {
    netlink.dump(RTM_GETNEIGH, &NeighbourMessage::default(), |kind, body| {
        if kind == RTM_NEWNEIGH { neighbour(body) } else { None }
    })
}

/// Lists the gateways of the host's routes. See rtnetlink(7), RTM_GETROUTE; Linux 2.2.
///
/// # Capabilities
/// None.
///
/// # Errors
/// The kernel's refusal; EINTR as [`Netlink::dump`].
pub fn list_gateways(netlink: &Netlink) -> Result<Vec<Gateway>, Errno> {
    netlink.dump(RTM_GETROUTE, &RouteMessage::default(), |kind, body| {
        if kind == RTM_NEWROUTE { gateway(body) } else { None }
    })
}

fn neighbour(body: &[u8]) -> Option<Neighbour> {
    let message = NeighbourMessage::parse(body).ok()?;
    if !VALID.contains(&message.header.state) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(value)) => address = Some(value.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(value)) => address = Some(value.into()),
            NeighbourAttribute::LinkLayerAddress(value) => mac = value.try_into().ok(),
            _ => {}
        }
    }
    // A multicast MAC address belongs to no single host.
    let mac = mac.filter(|mac: &Mac| mac[0] & 1 == 0)?;
    Some(Neighbour { index: message.header.ifindex, mac, address: address? })
}

fn gateway(body: &[u8]) -> Option<Gateway> {
    let (mut index, mut gateway) = (None, None);
    for attribute in RouteMessage::parse(body).ok()?.attributes {
        match attribute {
            RouteAttribute::Oif(value) => index = Some(value),
            RouteAttribute::Gateway(RouteAddress::Inet(value)) => gateway = Some(value.into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(value)) => gateway = Some(value.into()),
            _ => {}
        }
    }
    Some((index?, gateway?))
}
