//! The host's addresses in the kernel: add one with a lifetime, renew it, remove it, list them.
//!
//! Promises: [`add`] adds an address only if the interface does not have it, with the broker's tag, and the kernel removes
//! it when its lifetime ends; [`renew`] and [`remove`] change an address only at the given interface and prefix. See
//! rtnetlink(7).

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator};
use nix::errno::Errno;

use super::Netlink;
use super::interface::Vrf;
use super::netlink_body::{self, Body, attribute, number};

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
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
/// The attribute that holds the tag.
pub const IFA_PROTO: u16 = 11;
/// The offsets of rtm_protocol and rtm_type in struct rtmsg, and its length.
const ROUTE_PROTOCOL: usize = 5;
const ROUTE_TYPE: usize = 7;
pub(super) const RTMSG: usize = 12;
const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
const RTM_F_FIB_MATCH: u32 = 0x2000;
/// AF_INET and AF_INET6.
pub(super) const INET: u8 = 2;
const INET6: u8 = 10;
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
    let messages: Vec<_> = placements.iter().map(message).collect();
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
    let messages: Vec<_> = placements.iter().map(remove_message).collect();
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
    let all = Body { fixed: [[0; 4]; 2], attributes: Vec::new() };
    netlink.dump(
        RTM_GETADDR,
        &all,
        |kind, body| {
            if kind == RTM_NEWADDR { HostAddress::parse(body) } else { None }
        },
    )
}

/// Looks one IPv6 address up. The kernel has no such query for IPv4. See rtnetlink(7), RTM_GETADDR; Linux 2.6.19.
///
/// # Capabilities
/// None.
///
/// # Errors
/// EADDRNOTAVAIL if the address is not on the interface.
pub fn get_ipv6(netlink: &Netlink, placement: &Placement) -> Result<HostAddress, Errno> {
    let attributes = vec![netlink_body::address(IFA_ADDRESS, placement.address)];
    let message =
        Body { fixed: [[family(placement.address), 0, 0, 0], placement.index.to_ne_bytes()], attributes };
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
    let queries: Vec<_> = lookups.iter().map(query).collect();
    let parse = |body: &[u8]| {
        let destination = match *body.get(ROUTE_TYPE)? {
            libc::RTN_LOCAL => Destination::Local,
            libc::RTN_BROADCAST => Destination::Broadcast,
            libc::RTN_ANYCAST => Destination::Anycast,
            libc::RTN_MULTICAST => Destination::Multicast,
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
    if body.get(ROUTE_PROTOCOL) != Some(&libc::RTPROT_KERNEL) {
        return Ok(None);
    }
    route_attribute(&body, RTA_OIF).map(Some).ok_or(Errno::EPROTO)
}

/// The number in an attribute of struct rtmsg.
fn route_attribute(body: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(*attribute(body.get(RTMSG..)?, kind)?.first_chunk()?))
}

/// A query of the route to an address; with `whole`, as the table of routes has it.
fn route_query(Lookup { address, vrf }: Lookup, whole: bool) -> Body<3> {
    let mut flags = if whole { RTM_F_FIB_MATCH } else { 0 };
    let mut attributes = vec![netlink_body::address(RTA_DST, address)];
    if let Some(vrf) = vrf {
        // Without it, the reply names the table `main` for IPv4.
        flags |= RTM_F_LOOKUP_TABLE;
        attributes.push(number(RTA_OIF, vrf.index));
    }
    Body { fixed: [[family(address), host_prefix(address), 0, 0], [0; 4], flags.to_ne_bytes()], attributes }
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
        Some(Self {
            placement,
            tagged,
            tentative: flags & libc::IFA_F_TENTATIVE != 0,
            duplicate: flags & libc::IFA_F_DADFAILED != 0,
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

/// The number of its address family.
pub(super) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { INET } else { INET6 }
}

/// struct ifaddrmsg and its attributes.
fn remove_message(Placement { address, index, prefix }: &Placement) -> Body<2> {
    let attributes =
        vec![netlink_body::address(IFA_LOCAL, *address), netlink_body::address(IFA_ADDRESS, *address)];
    Body { fixed: [[family(*address), *prefix, 0, 0], index.to_ne_bytes()], attributes }
}

fn add_message(placement: &Placement, lifetime: Lifetime, source: SourceUse, detect: bool) -> Body<2> {
    let mut message = remove_message(placement);
    let mut flags = libc::IFA_F_NOPREFIXROUTE;
    if !detect && placement.address.is_ipv6() {
        flags |= libc::IFA_F_NODAD;
    }
    let valid = lifetime.unwrap_or(PERMANENT);
    let is_source = source == SourceUse::Allowed || placement.address.is_ipv4() || placement.prefix < 128;
    let preferred = if is_source { valid } else { 0 };
    // struct ifa_cacheinfo; the kernel sets the two times.
    let lifetimes = [preferred, valid, 0, 0].map(u32::to_ne_bytes).as_flattened().to_vec();
    message.attributes.extend([
        number(IFA_FLAGS, flags),
        DefaultNla::new(IFA_CACHEINFO, lifetimes),
        DefaultNla::new(IFA_PROTO, vec![TAG]),
    ]);
    message
}
