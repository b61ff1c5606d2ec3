//! The kernel's table of addresses: put one there for a time, renew it, take it away, list what is there.
//!
//! Promises: an address is added only where there is none, carries the broker's tag and goes by itself when its lease
//! ends; one is renewed or removed at exactly its interface and prefix. Touches the host's addresses through the socket
//! it is given. Sources: rtnetlink(7), IFA_PROTO of Linux 5.18.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteType};
use nix::errno::Errno;

use super::Netlink;

/// IFA_PROTO of every address that the broker adds: who put it there, for whoever lists addresses.
pub const TAG: u8 = 0x50;

/// The kind of the message that adds an address, and tells of one.
pub const RTM_NEWADDR: u16 = 20;
/// The kind of the message that removes an address, and tells of that.
pub const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
/// The length of struct ifaddrmsg, and the attributes behind it that are looked at: include/uapi/linux/if_addr.h.
const IFADDRMSG: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// The attribute that has the tag.
pub const IFA_PROTO: u16 = 11;
/// Where struct rtmsg has its type.
const ROUTE_TYPE: usize = 7;
/// A lifetime without end.
const FOREVER: u32 = u32::MAX;

/// An address at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The address.
    pub address: IpAddr,
    /// The interface's number.
    pub index: u32,
    /// The prefix length.
    pub prefix: u8,
}

/// An address that is on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    /// Where.
    pub place: Place,
    /// Whether it carries the broker's tag.
    pub ours: bool,
    /// Whether duplicate detection goes on, IPv6 alone.
    pub tentative: bool,
    /// Whether duplicate detection found another host, IPv6 alone.
    pub duplicate: bool,
}

/// What the kernel said of each, in the order of the request.
pub type Outcomes = io::Result<Vec<Result<(), Errno>>>;

/// How long an address stays, in whole seconds; `None` for ever.
pub type Lifetime = Option<u32>;

/// Adds addresses; EEXIST where one is there already, with whatever lifetime. Without `detect` IPv6's own duplicate
/// detection is left out.
///
/// # Errors
/// The kernel could not be asked.
pub fn add(netlink: &Netlink, places: &[(Place, Lifetime)], detect: bool) -> Outcomes {
    put(netlink, places, NLM_F_CREATE | NLM_F_EXCL, detect)
}

/// Gives addresses that are there another lifetime from now on. One that is not there would be made: look first.
///
/// # Errors
/// The kernel could not be asked.
pub fn renew(netlink: &Netlink, places: &[(Place, Lifetime)]) -> Outcomes {
    put(netlink, places, NLM_F_REPLACE, false)
}

fn put(netlink: &Netlink, places: &[(Place, Lifetime)], how: u16, detect: bool) -> Outcomes {
    let messages: Vec<_> = places.iter().map(|(place, life)| whole(place, *life, detect)).collect();
    netlink.act_all(RTM_NEWADDR, how, &messages)
}

/// Removes addresses; EADDRNOTAVAIL where one is not there.
///
/// # Errors
/// The kernel could not be asked.
pub fn remove(netlink: &Netlink, places: &[Place]) -> Outcomes {
    let messages: Vec<_> = places.iter().map(bare).collect();
    netlink.act_all(RTM_DELADDR, 0, &messages)
}

/// Every address of the host.
///
/// # Errors
/// What the kernel refused it with.
pub fn list(netlink: &Netlink) -> Result<Vec<Present>, Errno> {
    netlink.dump(RTM_GETADDR, &AddressMessage::default(), |kind, body| {
        if kind == RTM_NEWADDR { Present::read(body) } else { None }
    })
}

/// One IPv6 address as it is now.
///
/// # Errors
/// EADDRNOTAVAIL where it is not there.
pub fn look(netlink: &Netlink, place: &Place) -> Result<Present, Errno> {
    let mut message = AddressMessage::default();
    message.header.family = family(place.address);
    message.header.index = place.index;
    message.attributes.push(AddressAttribute::Address(place.address));
    Present::read(&netlink.ask(RTM_GETADDR, &message)?).ok_or(Errno::EPROTO)
}

/// Whether the host takes addresses for its own, wherever it has them, in the order of the question.
///
/// # Errors
/// The kernel could not be asked; of one address, what it refused that with.
pub fn are_local(netlink: &Netlink, addresses: &[IpAddr]) -> Result<Vec<Result<bool, Errno>>, Errno> {
    let question = |address: &IpAddr| {
        let mut message = RouteMessage::default();
        message.header.address_family = family(*address);
        message.header.destination_prefix_length = bits(*address);
        if address.is_ipv6() {
            // The route as it stands (Linux 4.13): otherwise a source is chosen for it among all addresses there are.
            message.header.flags = RouteFlags::FibMatch;
        }
        message.attributes.push(RouteAttribute::Destination((*address).into()));
        message
    };
    let questions: Vec<RouteMessage> = addresses.iter().map(question).collect();
    let local = u8::from(RouteType::Local);
    let answers = netlink.ask_all(RTM_GETROUTE, &questions, |body| Some(*body.get(ROUTE_TYPE)? == local))?;
    let known = |answer| match answer {
        Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL) => Ok(false),
        other => other,
    };
    Ok(answers.into_iter().map(known).collect())
}

impl Present {
    /// The address that a message of the kernel tells of. Read by hand, for there may be thousands of them at once.
    pub fn read(body: &[u8]) -> Option<Self> {
        let [_, prefix, flags, _, index @ ..] = *body.first_chunk::<IFADDRMSG>()?;
        let (mut local, mut address, mut ours, mut flags) = (None, None, false, u32::from(flags));
        for attribute in NlasIterator::new(body.get(IFADDRMSG..)?) {
            let attribute = attribute.ok()?;
            let value = attribute.value();
            match attribute.kind() {
                IFA_ADDRESS => address = ip(value),
                // On a point-to-point interface the other one is the peer's.
                IFA_LOCAL => local = ip(value),
                IFA_FLAGS => flags = u32::from_ne_bytes(*value.first_chunk()?),
                IFA_PROTO => ours = value == [TAG],
                _ => {}
            }
        }
        let place = Place { address: local.or(address)?, index: u32::from_ne_bytes(index), prefix };
        let flags = AddressFlags::from_bits_retain(flags);
        Some(Self {
            place,
            ours,
            tentative: flags.contains(AddressFlags::Tentative),
            duplicate: flags.contains(AddressFlags::Dadfailed),
        })
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*bytes.first_chunk::<16>()?)),
        _ => None,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bare(place: &Place) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(place.address);
    message.header.prefix_len = place.prefix;
    message.header.index = place.index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(place.address));
    message.attributes.push(AddressAttribute::Address(place.address));
    message
}

fn whole(place: &Place, lifetime: Lifetime, detect: bool) -> AddressMessage {
    let mut message = bare(place);
    let mut flags = AddressFlags::Noprefixroute;
    if !detect && place.address.is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    let mut life = CacheInfo::default();
    life.ifa_valid = lifetime.unwrap_or(FOREVER);
    life.ifa_preferred = life.ifa_valid;
    message.attributes.push(AddressAttribute::Flags(flags));
    message.attributes.push(AddressAttribute::CacheInfo(life));
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(TAG)));
    message
}
