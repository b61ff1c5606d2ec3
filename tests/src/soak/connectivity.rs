//! Connecting to an endpoint as a client does: its owner receives the connection, and a stopped endpoint refuses it.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};

use super::disruption::Mark;
use super::model::Model;
use crate::broker::timespec;
use crate::wait::TIMEOUT;

fn parse(endpoint: &str) -> (SocketAddr, bool) {
    let (address, udp) = endpoint.strip_suffix("/udp").map_or((endpoint, false), |address| (address, true));
    (address.parse().unwrap(), udp)
}

/// Checks that a connection to this endpoint arrives at this socket, unless the broker ends and disables it.
pub fn check_served(model: &Model, began: Mark, endpoint: &str, socket: OwnedFd) {
    let (address, udp) = parse(endpoint);
    let outcome = if udp { datagram(address, socket) } else { connection(address, socket) };
    match outcome {
        Ok(true) => model.count("listeners verified"),
        _ if model.broker_down.occurred_since(began) => model.count("listeners that ended with their broker"),
        Ok(false) => model.violation(format_args!("a client of {endpoint} did not reach its owner")),
        Err(error) => model.violation(format_args!("a client of {endpoint} failed: {error}")),
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

/// Checks that a stopped endpoint refuses connections.
pub fn check_refused(model: &Model, endpoint: &str) {
    let (address, udp) = parse(endpoint);
    if udp {
        return;
    }
    match TcpStream::connect_timeout(&address, TIMEOUT) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => model.count("listeners stopped"),
        other => model.violation(format_args!("{endpoint} is stopped, but connecting gave {other:?}")),
    }
}
