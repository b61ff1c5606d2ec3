//! Coming to an endpoint as a client does: who has it is who serves, and what was stopped serves nobody.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};

use super::ledger::Ledger;
use super::trouble::Moment;
use crate::broker::timespec;
use crate::wait::TIMEOUT;

fn at(endpoint: &str) -> (SocketAddr, bool) {
    let (address, udp) = endpoint.strip_suffix("/udp").map_or((endpoint, false), |address| (address, true));
    (address.parse().unwrap(), udp)
}

/// Whoever comes to this endpoint comes out of this socket, unless its broker ends and takes it out of service.
pub fn serve(ledger: &Ledger, began: Moment, endpoint: &str, socket: OwnedFd) {
    let (address, udp) = at(endpoint);
    let outcome = if udp { datagram(address, socket) } else { connection(address, socket) };
    match outcome {
        Ok(true) => ledger.count("listeners that served"),
        _ if ledger.broker_ends.since(began) => ledger.count("listeners that ended with their broker"),
        Ok(false) => ledger.violation(format_args!("{endpoint} is served by somebody else than its owner")),
        Err(error) => ledger.violation(format_args!("{endpoint} serves nobody: {error}")),
    }
}

fn await_input(socket: &OwnedFd) -> bool {
    let mut one = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut one, Some(&timespec(TIMEOUT))).unwrap() == 1
}

fn connection(address: SocketAddr, socket: OwnedFd) -> std::io::Result<bool> {
    let client = TcpStream::connect_timeout(&address, TIMEOUT)?;
    if !await_input(&socket) {
        return Ok(false);
    }
    let (_, from) = TcpListener::from(socket).accept()?;
    Ok(from == client.local_addr()?)
}

fn datagram(address: SocketAddr, socket: OwnedFd) -> std::io::Result<bool> {
    let client = UdpSocket::bind((address.ip(), 0))?;
    client.send_to(b"soak", address)?;
    if !await_input(&socket) {
        return Ok(false);
    }
    let (_, from) = UdpSocket::from(socket).recv_from(&mut [0; 8])?;
    Ok(from == client.local_addr()?)
}

/// After its stop an endpoint refuses whoever comes.
pub fn serves_nobody(ledger: &Ledger, endpoint: &str) {
    let (address, udp) = at(endpoint);
    if udp {
        return;
    }
    match TcpStream::connect_timeout(&address, TIMEOUT) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => ledger.count("listeners stopped"),
        other => ledger.violation(format_args!("{endpoint} was stopped and a client got {other:?}")),
    }
}
