//! The socket by which the kernel tells of interfaces and addresses.
//!
//! Promises: everything is told of but what the broker itself adds or renews: of ten thousand addresses that are renewed
//! every two seconds that would be five thousand news a second, of which none is new. Touches the socket that it opens.
//! Sources: rtnetlink(7), and SKF_AD_NLATTR of the kernel's Documentation/networking/filter.rst.

use std::os::unix::net::UnixDatagram;

use nix::sys::socket::SockProtocol;

use crate::sys::bpf::{self, DROP_PACKET, KEEP_PACKET};
use crate::sys::netlink;
use crate::sys::rtnl::{IFA_PROTO, RTM_NEWADDR, TAG};

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// Where struct nlmsghdr has its type, and where the attributes begin behind it and struct ifaddrmsg.
const KIND: u32 = 4;
const ATTRIBUTES: u32 = 16 + 8;
/// Loads from here give where an attribute is: SKF_AD_OFF + SKF_AD_NLATTR.
const ATTRIBUTE: u32 = 0_u32.wrapping_sub(0x1000) + 12;
/// The length of struct nlattr.
const BEFORE_VALUE: u32 = 4;

/// Opens it.
///
/// # Errors
/// As socket(2), setsockopt(2) and bind(2) have them.
pub fn open() -> nix::Result<UnixDatagram> {
    let socket = netlink::open(SockProtocol::NetlinkRoute, GROUPS)?;
    // Numbers are loaded as the network has them, and the message has them as this machine does.
    let added = u32::from(RTM_NEWADDR.to_be());
    let mut program = [
        bpf::load_half(KIND),
        bpf::jump_if_equal(added, 0, 7),
        bpf::load_constant(ATTRIBUTES),
        bpf::load_constant_to_x(IFA_PROTO.into()),
        bpf::load_word(ATTRIBUTE),
        bpf::jump_if_equal(0, 3, 0),
        bpf::copy_a_to_x(),
        bpf::load_byte_at_x(BEFORE_VALUE),
        bpf::jump_if_equal(TAG.into(), 1, 0),
        KEEP_PACKET,
        DROP_PACKET,
    ];
    bpf::attach(&socket, &mut program)?;
    Ok(socket.into())
}
