//! Attacks on the network that do not involve the broker.

use std::io;
use std::net::{TcpListener, UdpSocket};

use crate::attack::{Attack, Outcome, Word, address, all_refused, call};

pub const ATTACKS: &[Attack] = &[
    Attack { name: "raw-sockets", attempt: raw_sockets },
    Attack { name: "privileged-ports", attempt: privileged_ports },
    Attack { name: "interfaces", attempt: interfaces },
    Attack { name: "marks", attempt: marks },
];

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<Word> {
    call(libc::SYS_socket, [family.into(), kind.into(), protocol.into()])
}

fn raw_sockets() -> Outcome {
    all_refused([
        ("ICMP".to_owned(), socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
        ("any IP".to_owned(), socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)),
        ("ICMPv6".to_owned(), socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)),
        ("packets".to_owned(), socket(libc::AF_PACKET, libc::SOCK_RAW, 0x0300)),
    ])
}

fn privileged_ports() -> Outcome {
    let tcp = [1, 25, 80, 1023]
        .map(|port| (format!("TCP {port}"), TcpListener::bind(("127.0.0.1", port)).map(|_| ())));
    let udp = [53, 1023].map(|port| (format!("UDP {port}"), UdpSocket::bind(("::1", port)).map(|_| ())));
    all_refused(tcp.into_iter().chain(udp))
}

fn interfaces() -> Outcome {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    // struct ifreq: the name, then the flags, without IFF_UP.
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    let down = call(libc::SYS_ioctl, [socket, libc::SIOCSIFFLAGS as Word, address(&request)]);
    let mtu = call(libc::SYS_ioctl, [socket, libc::SIOCSIFMTU as Word, address(&request)]);
    all_refused([("flags".to_owned(), down), ("MTU".to_owned(), mtu)])
}

fn marks() -> Outcome {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    let set = |level: i32, option: i32| {
        call(libc::SYS_setsockopt, [socket, level.into(), option.into(), address(&1_u32), 4])
    };
    all_refused([
        ("SO_MARK".to_owned(), set(libc::SOL_SOCKET, libc::SO_MARK)),
        ("IP_TRANSPARENT".to_owned(), set(libc::IPPROTO_IP, libc::IP_TRANSPARENT)),
        ("SO_RCVBUFFORCE".to_owned(), set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE)),
    ])
}
