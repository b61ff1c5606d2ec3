//! One broker manages the addresses of a network namespace: a second one would remove the addresses and the fence of the first.
//!
//! Promises: the reservation belongs to the namespace, whatever the mount or PID namespace of the other broker; it ends with the
//! last process that has its socket. It is an abstract Unix socket that is bound and does nothing else: nobody can connect or
//! send to it. Any user can bind that name first, see unix(7): then the broker goes on without a reservation, and says so. See
//! network_namespaces(7).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::open::STEP;
use crate::failure::{Exit, Failure};
use crate::sys::sock_diag::UnixSocket;
use crate::sys::{Netlink, process, sock_diag, socket};

/// The name of the socket, without the leading NUL of abstract names.
const NAME: &[u8] = b"portreeve/addresses";
const ROOT: u32 = 0;

/// The right to manage the addresses of this network namespace.
#[derive(Debug)]
pub struct Reservation(OwnedFd);

impl Reservation {
    /// Takes it; `None` if another user than root has the name. `diag` is a socket for sock_diag.
    ///
    /// # Errors
    /// Another broker has it.
    pub fn take(diag: &Netlink) -> Result<Option<Self>, Failure> {
        match socket::bind_abstract(NAME) {
            Ok(socket) => return Ok(Some(Self(socket))),
            Err(Errno::EADDRINUSE) => {}
            Err(errno) => return Err(Failure::os(STEP, "binding the abstract socket of a broker", errno)),
        }
        // In doubt it is a broker.
        let holder = sock_diag::find_abstract(diag, NAME).ok().flatten();
        if holder.is_some_and(|holder| holder.user.is_some_and(|user| user != ROOT)) {
            return Ok(None);
        }
        let process = holder.and_then(|UnixSocket { inode, .. }| process::with_socket(inode));
        let process = process.map_or_else(
            || "a process that this one cannot see, such as one of another PID namespace".to_owned(),
            |pid| format!("process {pid}"),
        );
        Err(Failure::new(
            Exit::Unavailable,
            STEP,
            format_args!("another broker manages the addresses of this network namespace: {process}"),
            "stop it first, start this one with --takeover and the socket of that one, or let only one of them permit \
             addresses",
        ))
    }

    /// Continues the reservation of the predecessor.
    pub fn continue_of(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Reservation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
