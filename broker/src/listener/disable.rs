//! Disabling a socket: no process that holds a copy of it can serve on it any more.
//!
//! Closing the broker's copy does not stop a listener of which a worker holds another copy, and after shutdown(2) the worker
//! could call listen(2) again. So the broker also locks into the socket a filter that drops every packet.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use crate::sys::socket::{self, AddressFamily, SockType};
use crate::sys::{bpf, sockopt};

/// The filter that drops every packet.
#[derive(Debug)]
pub enum DropFilter {
    /// An eBPF program that was loaded at start. Attaching it needs no capability.
    Ebpf(OwnedFd),
    /// A classic BPF program. Some kernels require CAP_NET_ADMIN to attach it.
    Classic,
    /// The kernel lets the broker attach neither: a stopped socket is shut down only.
    Unavailable,
}

impl DropFilter {
    /// Loads the eBPF program while the process is still root; falls back to the classic one in a container or user
    /// namespace that forbids it.
    pub fn load() -> Self {
        bpf::load_drop_all().map_or(Self::Classic, Self::Ebpf)
    }

    /// Tries the filter on a scratch socket of the confined broker.
    pub fn verified(self) -> nix::Result<Self> {
        let scratch = socket::open(AddressFamily::Inet, SockType::Stream)?;
        match self.lock_into(&scratch) {
            Ok(()) => Ok(self),
            Err(_) => Ok(Self::Unavailable),
        }
    }

    fn lock_into(&self, socket: impl AsFd) -> nix::Result<()> {
        match self {
            Self::Ebpf(program) => sockopt::attach_bpf(&socket, program)?,
            Self::Classic => bpf::attach_drop_all(&socket)?,
            Self::Unavailable => return Ok(()),
        }
        sockopt::lock_filter(&socket)
    }

    /// Disables a socket for good: the kernel resets connections in its queue and refuses new ones.
    pub fn disable(&self, socket: impl AsFd) -> nix::Result<()> {
        // Shut down first: the kernel answers the last packet of a handshake with a reset when it finds no listener. The
        // filter would drop that packet without an answer, and the client would wait for its own timeout.
        match socket::shut_down(&socket) {
            // A UDP socket has no connection to shut down; the filter is enough.
            Ok(()) | Err(Errno::ENOTCONN) => self.lock_into(&socket),
            Err(errno) => Err(errno),
        }
    }
}
