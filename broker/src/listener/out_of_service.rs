//! Taking a socket out of service for everyone: whoever kept a copy can serve nobody on it.
//!
//! Closing the broker's copy does not stop a listener whose socket a worker holds too, and after shutdown(2) the
//! worker could listen again. So a filter that drops every packet is locked into the socket as well.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socket};

use crate::sys::bpf;

/// How sockets are made to drop everything.
#[derive(Debug)]
pub enum Filter {
    /// An eBPF program, loaded while the broker could and attached to each socket: anyone may attach it.
    Program(OwnedFd),
    /// A classic BPF program given anew for each socket. Some kernels want cap_net_admin for that.
    Classic,
    /// The kernel lets this broker do neither: a stopped socket is shut down, and no more.
    None,
}

impl Filter {
    /// Loads the program while the process is still root; a container or user namespace may not let it.
    pub fn load() -> Self {
        bpf::load().map_or(Self::Classic, Self::Program)
    }

    /// Tries, as the confined broker, whether it works, and tells what does.
    pub fn confirmed(self) -> nix::Result<Self> {
        let scratch = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        match self.lock_into(&scratch) {
            Ok(()) => Ok(self),
            Err(_) => Ok(Self::None),
        }
    }

    fn lock_into(&self, socket: impl AsFd) -> nix::Result<()> {
        match self {
            Self::Program(program) => crate::sys::sockopt::attach_program(&socket, program)?,
            Self::Classic => crate::sys::sockopt::attach_drop_everything(&socket)?,
            Self::None => return Ok(()),
        }
        crate::sys::sockopt::lock_filter(&socket)
    }

    /// Ends a socket: connections that wait are reset and new ones refused, for good.
    pub fn end(&self, socket: impl AsFd) -> nix::Result<()> {
        // Shut down first: what ends a handshake and reaches no listener is answered with a reset, and what the filter
        // drops with nothing at all, so that its client would wait for ever.
        match shutdown(socket.as_fd().as_raw_fd(), Shutdown::Both) {
            // A UDP socket has no connection to end; the filter is all it needs.
            Ok(()) | Err(Errno::ENOTCONN) => self.lock_into(&socket),
            Err(errno) => Err(errno),
        }
    }
}
