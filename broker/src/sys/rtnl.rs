//! The host's addresses in the kernel: add one with a lifetime, renew it, remove it, list them.
//!
//! Promises: [`add`] adds an address only if the interface does not have it, with the broker's tag, and the kernel removes
//! it when its lifetime ends; [`renew`] and [`remove`] change an address only at the given interface and prefix. See
//! rtnetlink(7).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType};
use nix::errno::Errno;

use super::Netlink;
use super::interface::Vrf;
use super::netlink_body::attribute;

/// IFA_PROTO of every address that the broker adds (Linux 5.18): `ip address` shows it.
pub const TAG: u8 = 0x50;

/// The kind of the message that adds an address or reports one.
pub const RTM_NEWADDR: u16 = 20;
/// The kind of the message that removes an address or reports its removal.
pub const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
/// The length of struct ifaddrmsg; see include/uapi/linux/if_addr.h for it and the attributes.
const IFADDRMSG: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// The attribute that holds the tag.
pub const IFA_PROTO: u16 = 11;
/// The offsets of rtm_protocol and rtm_type in struct rtmsg, and its length.
const ROUTE_PROTOCOL: usize = 5;
const ROUTE_TYPE: usize = 7;
pub(super) const RTMSG: usize = 12;
pub(super) const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
/// The kernel's lifetime of a permanent address.
const PERMANENT: u32 = u32::MAX;

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Placement {
    /// The address.
    pub address: IpAddr,
    /// The index of the interface.
    pub index: u32,
    /// The prefix length.
    pub prefix: u8,
}

/// An address as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The address and its interface.
    pub placement: Placement,
    /// Whether it carries the broker's [`TAG`].
    pub tagged: bool,
    /// Whether duplicate address detection is running (IPv6).
    pub tentative: bool,
    /// Whether duplicate address detection found another host (IPv6).
    pub duplicate: bool,
}

/// The kernel's outcome of each change, in the order of the request.
pub type Outcomes = Vec<Result<(), Errno>>;

/// The lifetime of an address in whole seconds; `None` for a permanent one.
pub type Lifetime = Option<u32>;

/// Whether the kernel may choose an address as the source of the host's own connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceUse {
    /// Not an IPv6 address with the prefix length 128: its preferred lifetime is 0, which makes it deprecated. It still serves
    /// programs that bind to it. See RFC 4862 section 5.5.4. The kernel does not choose such an IPv4 address while the
    /// interface has another one.
    #[default]
    Never,
    /// It may.
    Allowed,
}

/// Adds addresses. `detect` keeps the kernel's duplicate address detection of IPv6 on. See rtnetlink(7), RTM_NEWADDR;
/// Linux 3.9 for lifetimes of IPv4, 5.18 for the tag; older kernels ignore the tag.
///
/// # Capabilities
/// CAP_NET_ADMIN.
///
/// # Errors
/// Each: EEXIST if the address is on the interface already, with any lifetime; ENODEV if the interface does
/// not exist; EPERM.
pub fn add(
    netlink: &Netlink,
    placements: &[(Placement, Lifetime)],
    source: SourceUse,
    detect: bool,
) -> Outcomes {
    new_address(netlink, placements, NLM_F_CREATE | NLM_F_EXCL, source, detect)
}

/// Gives addresses another lifetime from now on. The kernel would create an address that does not exist: check first.
/// See rtnetlink(7), RTM_NEWADDR with NLM_F_REPLACE; Linux 3.9.
///
/// # Capabilities
/// CAP_NET_ADMIN.
///
/// # Errors
/// Each: ENODEV if the interface does not exist; EPERM.
pub fn renew(netlink: &Netlink, placements: &[(Placement, Lifetime)], source: SourceUse) -> Outcomes {
    new_address(netlink, placements, NLM_F_REPLACE, source, false)
}

fn new_address(
    netlink: &Netlink,
    placements: &[(Placement, Lifetime)],
    flags: u16,
    source: SourceUse,
    detect: bool,
) -> Outcomes {
    let message =
        |(placement, lifetime): &(Placement, Lifetime)| add_message(placement, *lifetime, source, detect);
    let messages: Vec<AddressMessage> = placements.iter().map(message).collect();
    netlink.change_each(RTM_NEWADDR, flags, &messages)
}

/// Removes addresses. See rtnetlink(7), RTM_DELADDR; Linux 2.2.
///
/// # Capabilities
/// CAP_NET_ADMIN.
///
/// # Errors
/// Each: EADDRNOTAVAIL if the address is not on the interface; ENODEV if the interface does not exist; EPERM.
pub fn remove(netlink: &Netlink, placements: &[Placement]) -> Outcomes {
    let messages: Vec<AddressMessage> = placements.iter().map(remove_message).collect();
    netlink.change_each(RTM_DELADDR, 0, &messages)
}

/// Lists every address of the host. See rtnetlink(7), RTM_GETADDR; Linux 2.2.
///
/// # Capabilities
/// None.
///
/// # Errors
/// The kernel's refusal; EINTR as [`Netlink::dump`].
pub fn list(netlink: &Netlink) -> Result<Vec<HostAddress>, Errno> {
    netlink.dump(RTM_GETADDR, &AddressMessage::default(), |kind, body| {
        if kind == RTM_NEWADDR { HostAddress::parse(body) } else { None }
    })
}

/// Looks one IPv6 address up. The kernel has no such query for IPv4. See rtnetlink(7), RTM_GETADDR; Linux 2.6.19.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EADDRNOTAVAIL if the address is not on the interface.
pub fn get_ipv6(netlink: &Netlink, placement: &Placement) -> Result<HostAddress, Errno> {
    let mut message = AddressMessage::default();
    message.header.family = family(placement.address);
    message.header.index = placement.index;
    message.attributes.push(AddressAttribute::Address(placement.address));
    HostAddress::parse(&netlink.query(RTM_GETADDR, &message)?).ok_or(Errno::EPROTO)
}

/// An address to look up in the routes of a VRF, or in those that apply outside every VRF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lookup {
    /// The address.
    pub address: IpAddr,
    /// The VRF.
    pub vrf: Option<Vrf>,
}

/// Where the kernel sends packets to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To this host: it has the address on an interface, or a route of the type `local` covers it.
    Local,
    /// To this host, by a route outside the VRF in which the address was looked up. The kernel reads the table `local` first,
    /// unless the operator has changed that. Whether the VRF has the address too is unknown.
    LocalOutsideVrf,
    /// To all hosts of a link.
    Broadcast,
    /// To one of several hosts, this one among them.
    Anycast,
    /// To the members of a group.
    Multicast,
    /// To another host, or nowhere.
    Elsewhere,
}

/// Where the kernel sends packets to each address. See rtnetlink(7), RTM_GETROUTE; RTM_F_FIB_MATCH for IPv6 and VRFs since Linux
/// 4.13. In a VRF whose device is down, the kernel finds no IPv4 address.
///
/// # Capabilities
/// None.
///
/// # Errors
/// The queries failed as a whole; or, for one address, the kernel's refusal.
pub fn destinations(netlink: &Netlink, lookups: &[Lookup]) -> Result<Vec<Result<Destination, Errno>>, Errno> {
    // The whole route for IPv6, or the kernel chooses a source among all addresses, which is slow with thousands of them.
    let query = |lookup: &Lookup| route_query(*lookup, lookup.address.is_ipv6() || lookup.vrf.is_some());
    let queries: Vec<RouteMessage> = lookups.iter().map(query).collect();
    let parse = |body: &[u8]| {
        let destination = match RouteType::from(*body.get(ROUTE_TYPE)?) {
            RouteType::Local => Destination::Local,
            RouteType::Broadcast => Destination::Broadcast,
            RouteType::Anycast => Destination::Anycast,
            RouteType::Multicast => Destination::Multicast,
            _ => Destination::Elsewhere,
        };
        Some((destination, route_attribute(body, RTA_TABLE)))
    };
    let replies = netlink.query_all(RTM_GETROUTE, &queries, parse)?;
    let destination =
        |(lookup, reply): (&Lookup, Result<(Destination, Option<u32>), Errno>)| match (reply, lookup.vrf) {
            (Ok((Destination::Local, table)), Some(vrf)) if table != Some(vrf.table) => {
                Ok(Destination::LocalOutsideVrf)
            }
            // The routes of the host outside the VRF apply where those of the VRF have none.
            (
                Ok((Destination::Broadcast | Destination::Anycast | Destination::Multicast, table)),
                Some(vrf),
            ) if table != Some(vrf.table) => Ok(Destination::Elsewhere),
            (Ok((destination, _)), _) => Ok(destination),
            // The errors of unreachable, prohibit and blackhole routes.
            (Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL), _) => {
                Ok(Destination::Elsewhere)
            }
            // The VRF was deleted.
            (Err(Errno::ENODEV), Some(_)) => Ok(Destination::Elsewhere),
            (Err(errno), _) => Err(errno),
        };
    Ok(lookups.iter().zip(replies).map(destination).collect())
}

/// The index of the interface outside every VRF that has a local address; `None` if a route that somebody added makes it local.
/// See rtnetlink(7), RTM_GETROUTE; RTM_F_FIB_MATCH since Linux 4.13.
///
/// # Capabilities
/// None.
///
/// # Errors
/// The kernel's refusal; EPROTO if the reply has no interface.
pub fn interface_with(netlink: &Netlink, address: IpAddr) -> Result<Option<u32>, Errno> {
    let body = netlink.query(RTM_GETROUTE, &route_query(Lookup { address, vrf: None }, true))?;
    if body.get(ROUTE_PROTOCOL) != Some(&u8::from(RouteProtocol::Kernel)) {
        return Ok(None);
    }
    route_attribute(&body, RTA_OIF).map(Some).ok_or(Errno::EPROTO)
}

/// The number in an attribute of struct rtmsg.
fn route_attribute(body: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(*attribute(body.get(RTMSG..)?, kind)?.first_chunk()?))
}

/// A query of the route to an address; with `whole`, as the table of routes has it.
fn route_query(Lookup { address, vrf }: Lookup, whole: bool) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = host_prefix(address);
    if whole {
        message.header.flags = RouteFlags::FibMatch;
    }
    message.attributes.push(RouteAttribute::Destination(address.into()));
    if let Some(vrf) = vrf {
        // Without it, the reply names the table `main` for IPv4.
        message.header.flags |= RouteFlags::LookupTable;
        message.attributes.push(RouteAttribute::Oif(vrf.index));
    }
    message
}

/// The prefix length of a single address: 32 or 128.
pub fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl HostAddress {
    /// Parses the body of RTM_NEWADDR or RTM_DELADDR. Written by hand for speed, because a dump may hold thousands.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let [_, prefix, flags, _, index @ ..] = *body.first_chunk::<IFADDRMSG>()?;
        let (mut local, mut address, mut tagged, mut flags) = (None, None, false, u32::from(flags));
        for attribute in NlasIterator::new(body.get(IFADDRMSG..)?) {
            let attribute = attribute.ok()?;
            let value = attribute.value();
            match attribute.kind() {
                IFA_ADDRESS => address = ip(value),
                // On a point-to-point interface IFA_ADDRESS is the remote address.
                IFA_LOCAL => local = ip(value),
                IFA_FLAGS => flags = u32::from_ne_bytes(*value.first_chunk()?),
                IFA_PROTO => tagged = value == [TAG],
                _ => {}
            }
        }
        let placement = Placement { address: local.or(address)?, index: u32::from_ne_bytes(index), prefix };
        let flags = AddressFlags::from_bits_retain(flags);
        Some(Self {
            placement,
            tagged,
            tentative: flags.contains(AddressFlags::Tentative),
            duplicate: flags.contains(AddressFlags::Dadfailed),
        })
    }
}

/// An address from its bytes in network byte order.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*bytes.first_chunk::<16>()?)),
        _ => None,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn remove_message(placement: &Placement) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(placement.address);
    message.header.prefix_len = placement.prefix;
    message.header.index = placement.index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(placement.address));
    message.attributes.push(AddressAttribute::Address(placement.address));
    message
}

fn add_message(placement: &Placement, lifetime: Lifetime, source: SourceUse, detect: bool) -> AddressMessage {
    let mut message = remove_message(placement);
    let mut flags = AddressFlags::Noprefixroute;
    if !detect && placement.address.is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    let mut cache_info = CacheInfo::default();
    cache_info.ifa_valid = lifetime.unwrap_or(PERMANENT);
    let is_source = source == SourceUse::Allowed || placement.address.is_ipv4() || placement.prefix < 128;
    cache_info.ifa_preferred = if is_source { cache_info.ifa_valid } else { 0 };
    message.attributes.push(AddressAttribute::Flags(flags));
    message.attributes.push(AddressAttribute::CacheInfo(cache_info));
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(TAG)));
    message
}
