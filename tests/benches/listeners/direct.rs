//! The baseline `direct`: this process is privileged, and opens and closes the socket itself.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

const BACKLOG: i32 = 500;

/// A socket, opened as the broker does.
pub fn listener(endpoint: SocketAddrV4) -> OwnedFd {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    rustix::net::bind(&socket, &endpoint).unwrap();
    rustix::net::listen(&socket, BACKLOG).unwrap();
    socket
}

/// Everything that a privileged process does.
pub fn listen_and_close(endpoint: SocketAddrV4) {
    drop(listener(endpoint));
}
