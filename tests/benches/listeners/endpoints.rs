//! Endpoints in rotation, so that none is used again while its last listener may still be closing. They are a few ports on
//! many addresses, as on a mail server.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU16, Ordering};

/// The first port.
pub const FIRST: u16 = 20_000;
/// The number of ports.
pub const PORTS: u16 = 64;
const COUNT: u16 = 20_000;

/// The endpoint with this number, in a network of the loopback interface.
pub fn endpoint(network: u8, number: u16) -> SocketAddrV4 {
    let [high, low] = (number / PORTS).to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(127, network, high, low), FIRST + number % PORTS)
}

/// The next `count` endpoints.
pub fn next(count: usize) -> impl Iterator<Item = SocketAddrV4> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let step = u16::try_from(count).unwrap();
    let start = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| Some((next + step) % COUNT));
    let start = start.unwrap();
    (0..step).map(move |offset| endpoint(1, (start + offset) % COUNT))
}
