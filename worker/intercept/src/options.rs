//! Options of the program's socket that the broker's socket gets too.
//!
//! Those that decide about a bind are part of the request instead: SO_REUSEPORT, IPV6_V6ONLY, IP_FREEBIND and SO_BINDTODEVICE.
//! SO_REUSEADDR is the broker's: it has the same effect on a TCP listener, and on a UDP socket it would let other sockets take
//! its packets.

use std::os::fd::BorrowedFd;

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};

use crate::sys;

/// A level and a name. Values are copied as bytes.
const COPIED: [(i32, i32); 41] = [
    (SOL_SOCKET, libc::SO_BROADCAST),
    (SOL_SOCKET, libc::SO_DONTROUTE),
    (SOL_SOCKET, libc::SO_INCOMING_CPU),
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (SOL_SOCKET, libc::SO_LINGER),
    (SOL_SOCKET, libc::SO_OOBINLINE),
    (SOL_SOCKET, libc::SO_PRIORITY),
    (SOL_SOCKET, libc::SO_RCVLOWAT),
    (SOL_SOCKET, libc::SO_RCVTIMEO),
    (SOL_SOCKET, libc::SO_SNDTIMEO),
    (SOL_SOCKET, libc::SO_RXQ_OVFL),
    (SOL_SOCKET, libc::SO_TIMESTAMP),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (SOL_SOCKET, libc::SO_TIMESTAMPING),
    (SOL_SOCKET, libc::SO_ZEROCOPY),
    (IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (IPPROTO_IP, libc::IP_PKTINFO),
    (IPPROTO_IP, libc::IP_RECVERR),
    (IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
    (IPPROTO_IP, libc::IP_RECVTOS),
    (IPPROTO_IP, libc::IP_RECVTTL),
    (IPPROTO_IP, libc::IP_TOS),
    (IPPROTO_IP, libc::IP_TTL),
    (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (IPPROTO_IPV6, libc::IPV6_RECVERR),
    (IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (IPPROTO_IPV6, libc::IPV6_TCLASS),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (IPPROTO_TCP, libc::TCP_CONGESTION),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (IPPROTO_TCP, libc::TCP_FASTOPEN),
    (IPPROTO_TCP, libc::TCP_KEEPCNT),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
];

/// Sizes of buffers, of which getsockopt(2) returns twice what setsockopt(2) was given.
const DOUBLED: [(i32, i32); 2] = [(SOL_SOCKET, libc::SO_RCVBUF), (SOL_SOCKET, libc::SO_SNDBUF)];

/// The longest value: the name of a congestion control.
const MAX_VALUE: usize = 16;

/// Gives a socket the options that the program has set on its own one: those that differ from a new socket's. An option that the
/// program did not set keeps the value of the broker's configuration. Whether it is non-blocking is copied in any case, because
/// the socket may have been another program's before.
pub fn copy(program: BorrowedFd<'_>, new: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    for (level, name) in COPIED {
        if let Some(value) = changed(program, new, level, name) {
            sys::set_option(to, level, name, value.bytes());
        }
    }
    for (level, name) in DOUBLED {
        let size = changed(program, new, level, name).and_then(|value| value.bytes().first_chunk().copied());
        if let Some(size) = size {
            let half = i32::from_ne_bytes(size) / 2;
            sys::set_option(to, level, name, &half.to_ne_bytes());
        }
    }
    sys::copy_nonblocking(program, to);
}

/// The value of an option.
struct Value {
    space: [u8; MAX_VALUE],
    length: usize,
}

impl Value {
    fn get(socket: BorrowedFd<'_>, level: i32, name: i32) -> Option<Self> {
        let mut space = [0; MAX_VALUE];
        let length = sys::option(socket, level, name, &mut space)?;
        Some(Self { space, length })
    }

    fn bytes(&self) -> &[u8] {
        self.space.get(..self.length).unwrap_or_default()
    }
}

/// The value of an option, if it differs from a new socket's.
fn changed(program: BorrowedFd<'_>, new: BorrowedFd<'_>, level: i32, name: i32) -> Option<Value> {
    let value = Value::get(program, level, name)?;
    let default = Value::get(new, level, name)?;
    (value.bytes() != default.bytes()).then_some(value)
}
