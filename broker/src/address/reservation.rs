//! One broker manages the addresses of a network namespace: a second one would remove the addresses and the fence of the first.
//!
//! Promises: the reservation belongs to the namespace, whatever the mount, PID or user namespace of the other broker; it ends
//! with the last process that has its socket; nobody without CAP_NET_ADMIN can take it. A flush of the packet filter leaves it.
//! It is an empty table that belongs to the socket that created it: NFT_TABLE_F_OWNER, Linux 5.12.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::open::STEP;
use crate::failure::{Exit, Failure};
use crate::sys::{Netlink, nft, process};

/// The right to manage the addresses of this network namespace.
#[derive(Debug)]
pub struct Reservation(OwnedFd);

impl Reservation {
    /// Takes it; `None` if this kernel has no such tables.
    ///
    /// # Errors
    /// Another broker has it.
    pub fn take() -> Result<Option<Self>, Failure> {
        let Ok(netlink) = Netlink::open(SockProtocol::NetlinkNetFilter) else { return Ok(None) };
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let comment = format!("{} of {}", std::process::id(), namespace.display());
        match nft::create_owned_table(&netlink, &comment) {
            Ok(()) => Ok(Some(Self(netlink.into()))),
            Err(Errno::EPERM | Errno::EEXIST) => {
                let holder = holder(&netlink);
                Err(Failure::new(
                    Exit::Unavailable,
                    STEP,
                    format_args!("another broker manages the addresses of this network namespace: {holder}"),
                    "stop it first, start this one with --takeover and the socket of that one, or let only one of them permit \
                     addresses",
                ))
            }
            // EINVAL and EOPNOTSUPP: the kernel does not know the flag, or has no nf_tables.
            Err(_) => Ok(None),
        }
    }

    /// Continues the reservation of the predecessor.
    pub fn continue_of(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

/// The process that has the reservation; if it is in another PID namespace, the one that took it, which may have passed it on.
fn holder(netlink: &Netlink) -> String {
    match nft::owner_of_owned_table(netlink) {
        Err(errno) => format!("a process that cannot be found out ({})", errno.desc()),
        Ok((port, comment)) => match process::with_netlink_socket(SockProtocol::NetlinkNetFilter, port) {
            Some(pid) => format!("process {pid}"),
            None => format!("the reservation was taken by process {comment}"),
        },
    }
}

impl AsFd for Reservation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
