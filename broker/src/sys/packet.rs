//! Packet sockets: one sends whole Ethernet frames and receives every ARP packet; another receives neighbour
//! advertisements of IPv6.
//!
//! Promises: nothing blocks; a frame leaves through the interface with the given index or not at all. The sockets are
//! opened before the broker confines itself: only opening needs CAP_NET_RAW. See packet(7).

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;

use super::bpf::{self, DROP_PACKET};

/// The longest frame that is received whole: ARP over Ethernet with its padding, or a neighbour advertisement.
const MAX_FRAME: usize = 128;

/// A packet socket.
#[derive(Debug)]
pub struct PacketSocket {
    /// The type is for tokio, whose safe types know no packet sockets; only its descriptor is used.
    socket: UnixDatagram,
}

/// A received frame.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedFrame {
    /// The index of the interface that received it.
    pub index: u32,
    bytes: [u8; MAX_FRAME],
    length: usize,
}

impl ReceivedFrame {
    /// Its bytes, truncated after the longest frame of interest.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// Opens a packet socket for a protocol, in network byte order.
fn open(protocol: i32) -> nix::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers; the descriptor is checked, and nothing else owns it.
    unsafe {
        let raw: RawFd = Errno::result(libc::socket(libc::AF_PACKET, kind, protocol))?;
        Ok(OwnedFd::from_raw_fd(raw))
    }
}

impl PacketSocket {
    /// Opens a socket that sends frames and receives every ARP packet. See packet(7); Linux 2.6.27.
    ///
    /// # Capabilities
    /// CAP_NET_RAW.
    ///
    /// # Errors
    /// EPERM without the capability.
    pub fn open_arp() -> nix::Result<Self> {
        let socket = open(i32::from(u16::try_from(libc::ETH_P_ARP).unwrap_or_default().to_be()))?;
        Ok(Self { socket: socket.into() })
    }

    /// Opens a socket that receives neighbour advertisements of IPv6 and nothing else. See packet(7) and bind(2); Linux
    /// 2.6.27.
    ///
    /// # Capabilities
    /// CAP_NET_RAW.
    ///
    /// # Errors
    /// EPERM without the capability.
    pub fn open_neighbour_advertisements() -> nix::Result<Self> {
        // With protocol 0 it receives nothing until the filter is attached.
        let socket = open(0)?;
        // Keep IPv6 packets whose next header is ICMPv6 (58) with a neighbour advertisement (136) behind it.
        let mut program = [
            bpf::load_byte(20),
            bpf::jump_if_equal(58, 0, 3),
            bpf::load_byte(54),
            bpf::jump_if_equal(136, 0, 1),
            bpf::keep(128),
            DROP_PACKET,
        ];
        bpf::attach(&socket, &mut program)?;
        let mut address = empty_address();
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        address.sll_protocol = u16::try_from(libc::ETH_P_IPV6).unwrap_or_default().to_be();
        // SAFETY: the address is valid for the given length, and is only read.
        let bound =
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length_of(&address)) };
        Errno::result(bound)?;
        Ok(Self { socket: socket.into() })
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

    /// Sends a frame through an interface. See packet(7) and sendto(2); Linux 2.2.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// ENETDOWN if the interface is down; ENXIO if it does not exist; ENOBUFS if its queue is full.
    pub fn send(&self, index: u32, frame: &[u8]) -> nix::Result<()> {
        let mut to = empty_address();
        to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        to.sll_ifindex = index.cast_signed();
        let length = length_of(&to);
        // SAFETY: the frame and the address are valid for the given lengths, and are only read.
        let sent = unsafe {
            let to = std::ptr::from_ref(&to).cast();
            libc::sendto(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, length)
        };
        Errno::result(sent).map(drop)
    }

    /// Receives one frame. See packet(7) and recvfrom(2); Linux 2.2.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// `WouldBlock` when none is queued; ENETDOWN once after an interface went down.
    pub fn receive(&self) -> io::Result<ReceivedFrame> {
        let mut from = empty_address();
        let mut length = length_of(&from);
        let mut bytes = [0; MAX_FRAME];
        // SAFETY: the buffer and the address are valid and writable for the given lengths.
        let received = unsafe {
            let from = std::ptr::from_mut(&mut from).cast();
            let room = bytes.as_mut_ptr().cast();
            libc::recvfrom(self.socket.as_raw_fd(), room, bytes.len(), 0, from, &raw mut length)
        };
        let length = usize::try_from(Errno::result(received)?).unwrap_or_default();
        Ok(ReceivedFrame { index: from.sll_ifindex.cast_unsigned(), bytes, length })
    }
}

fn empty_address() -> libc::sockaddr_ll {
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
