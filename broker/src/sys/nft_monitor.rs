//! Notifications from the kernel that another program removed parts of the broker's tables from the packet filter.
//!
//! Promises: reports no change that the broker made by its own socket: each renewal of ten thousand addresses would cause as
//! many useless notifications. See include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.

use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::bpf::{self, DROP_PACKET, KEEP_PACKET};
use super::netlink;
use super::nft_query;

/// The mask of NFNLGRP_NFTABLES, group 7.
const GROUPS: u32 = 1 << 6;
/// The kernel fills a datagram of notifications up to this size.
const DATAGRAM: usize = 32 * 1024;
/// The offset of nlmsg_pid in struct nlmsghdr: the socket whose request made the change.
const CHANGED_BY: u32 = 12;
/// The socket that receives them.
#[derive(Debug)]
pub struct NftMonitor {
    /// The type is for tokio, whose safe types know no netlink sockets; only its descriptor is used.
    socket: UnixDatagram,
    buffer: RefCell<Box<[u8]>>,
}

impl NftMonitor {
    /// Opens it; `own` is the socket by which the broker changes the packet filter. See netlink(7) and socket(7),
    /// SO_ATTACH_FILTER; Linux 3.14.
    ///
    /// # Capabilities
    /// CAP_NET_ADMIN, to join the group.
    ///
    /// # Errors
    /// Those of socket(2), setsockopt(2) and bind(2).
    pub fn open(own: &netlink::Netlink) -> nix::Result<Self> {
        let socket = netlink::open(SockProtocol::NetlinkNetFilter, GROUPS)?;
        // The filter loads in network byte order; the number of the socket is in host byte order.
        let mut program = [
            bpf::load_word(CHANGED_BY),
            bpf::jump_if_equal(own.port()?.to_be(), 1, 0),
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

    /// Receives all that is queued. Returns whether something was removed from one of the broker's tables; also if notifications
    /// were lost, because it may have been. See recv(2); Linux 2.2.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// EAGAIN when nothing is queued.
    pub fn receive(&self) -> nix::Result<bool> {
        let mut is_removed = self.receive_datagram()?;
        while let Ok(more) = self.receive_datagram() {
            is_removed |= more;
        }
        Ok(is_removed)
    }

    fn receive_datagram(&self) -> nix::Result<bool> {
        let mut buffer = self.buffer.borrow_mut();
        let length = match netlink::receive_notifications(&self.socket, &mut buffer) {
            Err(Errno::ENOBUFS) => return Ok(true),
            received => received?,
        };
        let mut messages = netlink::bodies(buffer.get(..length).unwrap_or_default());
        Ok(messages.any(|(kind, body)| nft_query::is_removal(kind) && nft_query::is_of_own_table(body)))
    }
}
