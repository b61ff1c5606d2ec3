//! The socket by which the kernel tells of interfaces and addresses.
//!
//! Promises: everything is told of but what the broker itself adds or renews: of ten thousand addresses that are renewed
//! every two seconds that would be five thousand news a second, of which none is new. Touches the socket that it opens.
//! Sources: rtnetlink(7), and SKF_AD_NLATTR of the kernel's Documentation/networking/filter.rst.

use std::os::unix::net::UnixDatagram;

use nix::sys::socket::SockProtocol;

use crate::sys::netlink;
use crate::sys::rtnl::{IFA_PROTO, RTM_NEWADDR, TAG};
use crate::sys::socket_filter::{self, step};

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// Where struct nlmsghdr has its type, and where the attributes begin behind it and struct ifaddrmsg.
const KIND: u32 = 4;
const ATTRIBUTES: u32 = 16 + 8;
/// Loads from here give where an attribute is: SKF_AD_OFF + SKF_AD_NLATTR.
const ATTRIBUTE: u32 = 0_u32.wrapping_sub(0x1000) + 12;
/// The length of struct nlattr.
const BEFORE_VALUE: u32 = 4;

/// Steps of a filter, as BPF_ names of include/uapi/linux/bpf_common.h make them up.
const LOAD_HALF: u16 = 0x28;
const LOAD_WORD: u16 = 0x20;
const LOAD_CONSTANT: u16 = 0x00;
const LOAD_CONSTANT_X: u16 = 0x01;
const LOAD_BYTE_AT_X: u16 = 0x50;
const MOVE_TO_X: u16 = 0x07;
const IS_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Opens it.
///
/// # Errors
/// As socket(2), setsockopt(2) and bind(2) have them.
pub fn open() -> nix::Result<UnixDatagram> {
    let socket = netlink::open(SockProtocol::NetlinkRoute, GROUPS)?;
    // Numbers are loaded as the network has them, and the message has them as this machine does.
    let added = u32::from(RTM_NEWADDR.to_be());
    let mut steps = [
        step(LOAD_HALF, 0, 0, KIND),
        step(IS_EQUAL, 0, 7, added),
        step(LOAD_CONSTANT, 0, 0, ATTRIBUTES),
        step(LOAD_CONSTANT_X, 0, 0, IFA_PROTO.into()),
        step(LOAD_WORD, 0, 0, ATTRIBUTE),
        step(IS_EQUAL, 3, 0, 0),
        step(MOVE_TO_X, 0, 0, 0),
        step(LOAD_BYTE_AT_X, 0, 0, BEFORE_VALUE),
        step(IS_EQUAL, 1, 0, TAG.into()),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ];
    socket_filter::attach(&socket, &mut steps)?;
    Ok(socket.into())
}
