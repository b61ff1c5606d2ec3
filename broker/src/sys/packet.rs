//! The packet socket: whole Ethernet frames to one interface, and every ARP packet that arrives at any; and another for
//! the advertisements of IPv6.
//!
//! Promises: nothing blocks; a frame is sent from the interface of the given number or not at all. Opened before the
//! broker confines itself, for that needs CAP_NET_RAW and using it does not. Source: packet(7).

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;

use crate::sys::bpf::{self, DROP_PACKET};

/// The longest frame that is looked at: ARP over Ethernet with its padding.
const LONGEST: usize = 128;

/// The socket.
#[derive(Debug)]
pub struct Packet {
    /// The type serves tokio alone, whose safe types know no packet sockets; only descriptors are used of it.
    socket: UnixDatagram,
}

/// A frame that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// At the interface of this number.
    pub index: u32,
    bytes: [u8; LONGEST],
    length: usize,
}

impl Arrived {
    /// The frame, cut where no ARP packet goes on.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// A packet socket of a protocol, as the network has its number.
fn raw(protocol: i32) -> nix::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers, and what it returns is checked and owned by nobody else.
    unsafe {
        let raw: RawFd = Errno::result(libc::socket(libc::AF_PACKET, kind, protocol))?;
        Ok(OwnedFd::from_raw_fd(raw))
    }
}

impl Packet {
    /// Opens it.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn open() -> nix::Result<Self> {
        let socket = raw(i32::from(u16::try_from(libc::ETH_P_ARP).unwrap_or_default().to_be()))?;
        Ok(Self { socket: socket.into() })
    }

    /// Opens one for the neighbour advertisements of IPv6 that arrive, and nothing else.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn open_for_advertisements() -> nix::Result<Self> {
        // Of no protocol it hears nothing until it is filtered.
        let socket = raw(0)?;
        // IPv6's next header is ICMPv6 (58), and the type behind it is a neighbour advertisement (136).
        let mut program = [
            bpf::load_byte(20),
            bpf::jump_if_equal(58, 0, 3),
            bpf::load_byte(54),
            bpf::jump_if_equal(136, 0, 1),
            bpf::keep(128),
            DROP_PACKET,
        ];
        bpf::attach(&socket, &mut program)?;
        let mut at = empty();
        at.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        at.sll_protocol = u16::try_from(libc::ETH_P_IPV6).unwrap_or_default().to_be();
        // SAFETY: the address is valid for the length given with it, and only read.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const at).cast(), length_of(&at)) };
        Errno::result(bound)?;
        Ok(Self { socket: socket.into() })
    }

    /// A copy of the descriptor, to be waited on.
    ///
    /// # Errors
    /// As fcntl(2) has them.
    pub fn watched(&self) -> io::Result<UnixDatagram> {
        self.socket.try_clone()
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// ENETDOWN where the interface is down, ENXIO where it is gone, ENOBUFS where its queue is full.
    pub fn send(&self, index: u32, frame: &[u8]) -> nix::Result<()> {
        let mut to = empty();
        to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        to.sll_ifindex = index.cast_signed();
        let length = length_of(&to);
        // SAFETY: the frame and the address are valid for the lengths given with them, and are only read.
        let sent = unsafe {
            let to = std::ptr::from_ref(&to).cast();
            libc::sendto(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, length)
        };
        Errno::result(sent).map(drop)
    }

    /// Takes one frame that arrived.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn receive(&self) -> io::Result<Arrived> {
        let mut from = empty();
        let mut length = length_of(&from);
        let mut bytes = [0; LONGEST];
        // SAFETY: the buffer and the address are valid and writable for the lengths given with them.
        let received = unsafe {
            let from = std::ptr::from_mut(&mut from).cast();
            let room = bytes.as_mut_ptr().cast();
            libc::recvfrom(self.socket.as_raw_fd(), room, bytes.len(), 0, from, &raw mut length)
        };
        let length = usize::try_from(Errno::result(received)?).unwrap_or_default();
        Ok(Arrived { index: from.sll_ifindex.cast_unsigned(), bytes, length })
    }
}

fn empty() -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: 0,
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

fn length_of(address: &libc::sockaddr_ll) -> libc::socklen_t {
    libc::socklen_t::try_from(size_of_val(address)).unwrap_or_default()
}
