//! Notifications from the kernel about interfaces and addresses.
//!
//! Promises: reports every change, except the addresses that the broker itself adds or renews. Ten thousand addresses
//! that are renewed every two seconds would cause five thousand useless notifications a second. See rtnetlink(7), and
//! SKF_AD_NLATTR in the kernel's Documentation/networking/filter.rst.

use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::SockProtocol;

use super::bpf::{self, DROP_PACKET, KEEP_PACKET};
use super::interface::{Interface, RTM_DELLINK, RTM_NEWLINK};
use super::netlink;
use super::rtnl::{HostAddress, IFA_PROTO, Placement, RTM_DELADDR, RTM_NEWADDR, TAG};

/// RTMGRP_LINK.
const LINKS: u32 = 0x1;
/// RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR.
const ADDRESSES: u32 = 0x10 | 0x100;
/// The kernel fills a datagram of notifications up to this size.
const DATAGRAM: usize = 32 * 1024;
/// The offset of nlmsg_type in struct nlmsghdr.
const KIND: u32 = 4;
/// The offset of the attributes, after struct nlmsghdr and struct ifaddrmsg.
const ATTRIBUTES: u32 = 16 + 8;
/// A load from SKF_AD_OFF + SKF_AD_NLATTR gives the offset of an attribute.
const FIND_ATTRIBUTE: u32 = 0_u32.wrapping_sub(0x1000) + 12;
/// The length of struct nlattr.
const BEFORE_VALUE: u32 = 4;

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// An interface was created or changed.
    Interface(Interface),
    /// The interface with this index was deleted.
    InterfaceDeleted(u32),
    /// An address is on an interface.
    AddressPresent(Placement),
    /// An address was removed.
    AddressRemoved(Placement),
}

/// The socket that receives them.
#[derive(Debug)]
pub struct RtnlMonitor {
    /// The type is for tokio, whose safe types know no netlink sockets; only its descriptor is used.
    socket: UnixDatagram,
    buffer: RefCell<Box<[u8]>>,
}

impl RtnlMonitor {
    /// Opens it. See netlink(7) and socket(7), SO_ATTACH_FILTER; Linux 2.6.26.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// Those of socket(2), setsockopt(2) and bind(2).
    pub fn open() -> nix::Result<Self> {
        Self::open_groups(LINKS | ADDRESSES)
    }

    /// Like [`RtnlMonitor::open`], for notifications about interfaces only.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// As above.
    pub fn open_links() -> nix::Result<Self> {
        Self::open_groups(LINKS)
    }

    fn open_groups(groups: u32) -> nix::Result<Self> {
        let socket = netlink::open(SockProtocol::NetlinkRoute, groups)?;
        // The filter loads in network byte order; the kind is in host byte order.
        let new_address = u32::from(RTM_NEWADDR.to_be());
        let mut program = [
            bpf::load_half(KIND),
            bpf::jump_if_equal(new_address, 0, 7),
            bpf::load_constant(ATTRIBUTES),
            bpf::load_constant_to_x(IFA_PROTO.into()),
            bpf::load_word(FIND_ATTRIBUTE),
            bpf::jump_if_equal(0, 3, 0),
            bpf::copy_a_to_x(),
            bpf::load_byte_at_x(BEFORE_VALUE),
            bpf::jump_if_equal(TAG.into(), 1, 0),
            KEEP_PACKET,
            DROP_PACKET,
        ];
        bpf::attach(&socket, &mut program)?;
        Ok(Self { socket: socket.into(), buffer: RefCell::new(vec![0; DATAGRAM].into()) })
    }

    /// Duplicates the descriptor, to wait on it. See fcntl(2), F_DUPFD_CLOEXEC; Linux 2.6.24.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// EMFILE.
    pub fn try_clone(&self) -> io::Result<UnixDatagram> {
        self.socket.try_clone()
    }

    /// Receives one datagram and handles each of its notifications. See recv(2); Linux 2.2.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// EAGAIN when none is queued; ENOBUFS when notifications were lost.
    pub fn receive(&self, mut handle: impl FnMut(Notification)) -> nix::Result<()> {
        let mut buffer = self.buffer.borrow_mut();
        let length = netlink::receive_notifications(&self.socket, &mut buffer)?;
        for (kind, body) in netlink::bodies(buffer.get(..length).unwrap_or_default()) {
            let notification =
                match kind {
                    RTM_NEWLINK => Interface::parse(body).map(Notification::Interface),
                    RTM_DELLINK => Interface::parse(body)
                        .map(|interface| Notification::InterfaceDeleted(interface.index)),
                    RTM_NEWADDR => HostAddress::parse(body)
                        .map(|address| Notification::AddressPresent(address.placement)),
                    RTM_DELADDR => HostAddress::parse(body)
                        .map(|address| Notification::AddressRemoved(address.placement)),
                    _ => None,
                };
            notification.into_iter().for_each(&mut handle);
        }
        Ok(())
    }
}
