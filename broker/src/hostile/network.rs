//! Attacks over the network and by sockets. The test listens on TCP port 2500 of loopback, on the abstract Unix socket
//! `portreeve-victim` and on `/run/host/other.sock`; the policy allows TCP port 25 only.

use std::mem::size_of;

use super::Attack;
use super::call::{Word, address, call, word};

pub const ATTACKS: &[Attack] = &[
    Attack { name: "connect by TCP", attempt: connect },
    Attack { name: "connect by TCP Fast Open", attempt: fast_open },
    Attack { name: "connect to an abstract Unix socket", attempt: || connect_unix(b"\0portreeve-victim") },
    Attack {
        name: "connect to a Unix socket of the host",
        attempt: || connect_unix(b"/run/host/other.sock"),
    },
    Attack {
        name: "bind a TCP port that the policy does not permit",
        attempt: || bind(libc::SOCK_STREAM, 0),
    },
    Attack {
        name: "bind a multipath TCP port that the policy does not permit",
        attempt: || bind(libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
    },
    Attack { name: "bind a UDP port that the policy does not permit", attempt: || bind(libc::SOCK_DGRAM, 0) },
    Attack {
        name: "open a raw socket",
        attempt: || socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
    },
    Attack { name: "open a packet socket", attempt: || socket(libc::AF_PACKET, libc::SOCK_RAW, 0x0300) },
    Attack { name: "change an interface", attempt: change_interface },
    Attack { name: "mark its packets for another route", attempt: mark },
];

fn socket(family: i32, kind: i32, protocol: i32) -> nix::Result<i64> {
    call(libc::SYS_socket, [word(family), word(kind | libc::SOCK_CLOEXEC), word(protocol)])
}

fn loopback(port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(std::net::Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    }
}

const LENGTH: Word = size_of::<libc::sockaddr_in>() as Word;

fn connect() -> nix::Result<i64> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    call(libc::SYS_connect, [socket, address(&loopback(2500)), LENGTH])
}

fn fast_open() -> nix::Result<i64> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let flags = word(libc::MSG_FASTOPEN);
    call(libc::SYS_sendto, [socket, address(b"x"), 1, flags, address(&loopback(2500)), LENGTH])
}

fn connect_unix(name: &[u8]) -> nix::Result<i64> {
    let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
    let mut packed = (libc::AF_UNIX as libc::sa_family_t).to_ne_bytes().to_vec();
    packed.extend_from_slice(name);
    let length = Word::try_from(packed.len()).unwrap_or_default();
    call(libc::SYS_connect, [socket, address(packed.as_slice()), length])
}

fn bind(kind: i32, protocol: i32) -> nix::Result<i64> {
    let socket = socket(libc::AF_INET, kind, protocol)?;
    call(libc::SYS_bind, [socket, address(&loopback(26)), LENGTH])
}

fn change_interface() -> nix::Result<i64> {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // struct ifreq: the name in 16 bytes, then the flags, which are those that loopback has.
    let mut request = [0_u8; 40];
    for (byte, name) in request.iter_mut().zip(b"lo") {
        *byte = *name;
    }
    let up = libc::IFF_UP | libc::IFF_LOOPBACK | libc::IFF_RUNNING;
    for (byte, flag) in request.iter_mut().skip(16).zip(up.to_ne_bytes()) {
        *byte = flag;
    }
    call(libc::SYS_ioctl, [socket, libc::SIOCSIFFLAGS as Word, address(&request)])
}

fn mark() -> nix::Result<i64> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let (level, option) = (word(libc::SOL_SOCKET), word(libc::SO_MARK));
    call(libc::SYS_setsockopt, [socket, level, option, address(&7_u32), 4])
}
