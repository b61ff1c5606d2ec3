//! Revoking a listener: no process that holds a copy of its socket can serve on it any more.
//!
//! Closing the broker's copy does not stop a listener of which a peer holds another copy, and after shutdown(2) the peer
//! could call listen(2) again. So every TCP and UDP socket is listed in the [`Allowlist`], and the filter that consults it
//! is locked into the socket before any peer has a copy. A Unix socket needs no filter: the kernel never forgets that it
//! was shut down.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use portreeve_protocol::Endpoint;

use crate::sys::allowlist::{Allowlist, Slot, Transport};
use crate::sys::ebpf::Program;
use crate::sys::socket::{self, AddressFamily, SockType};
use crate::sys::{bpf, sockopt};

/// How a listener can be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocability {
    /// It is removed from the allowlist; nothing that the holder of a copy does prevents that.
    Listed(Slot),
    /// A filter is attached then, unless the holder of a copy has locked another one into the socket.
    NotListed,
    /// shutdown(2) is enough for a Unix socket.
    UnixSocket,
}

/// The means to revoke listeners.
#[derive(Debug)]
pub struct Revocation {
    allowlist: Option<Allowlist>,
    filter: DropFilter,
}

/// The filter that drops every packet, for sockets that are not in the allowlist.
#[derive(Debug)]
enum DropFilter {
    /// An eBPF program that was loaded at start. Attaching it needs no capability.
    Ebpf(OwnedFd),
    /// A classic BPF program. Some kernels require CAP_NET_ADMIN to attach it.
    Classic,
    /// The kernel lets the broker attach neither: a stopped socket is shut down only.
    Unavailable,
}

/// How far revocation is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// Always.
    Always,
    /// For TCP unless the holder of a socket has bound it to an interface, for both unless it has locked a filter of its own
    /// into the socket.
    UnlessLocked,
    /// For TCP unless the holder of a socket has bound it to an interface.
    TcpOnly,
}

impl Revocation {
    /// Creates an allowlist for `capacity` listeners while the process is still root, and loads the filters.
    pub fn load(capacity: usize) -> Self {
        Self { allowlist: Allowlist::create(capacity).ok(), filter: DropFilter::load() }
    }

    /// Continues with the allowlist of another broker.
    ///
    /// # Errors
    /// The descriptor is no allowlist, or its filters cannot be loaded.
    pub fn adopt(&mut self, map: OwnedFd) -> nix::Result<()> {
        self.allowlist = Some(Allowlist::adopt(map)?);
        Ok(())
    }

    /// The map of the allowlist, for a broker that continues with it.
    pub fn map(&self) -> Option<BorrowedFd<'_>> {
        self.allowlist.as_ref().map(Allowlist::map)
    }

    /// Whether a listener can be revoked without its socket.
    pub fn needs_no_socket(&self) -> bool {
        self.allowlist.is_some()
    }

    /// How many listeners can be revoked.
    pub fn capacity(&self) -> usize {
        self.allowlist.as_ref().map_or(usize::MAX, Allowlist::capacity)
    }

    /// Tries the filters on scratch sockets of the confined broker, and returns how far revocation is enforced.
    ///
    /// # Errors
    /// A scratch socket cannot be opened, or the filter does not do what it is for.
    pub fn verify(&mut self) -> nix::Result<Enforcement> {
        if let Some(allowlist) = &self.allowlist {
            verify(allowlist)?;
            return Ok(Enforcement::Always);
        }
        let scratch = socket::open(AddressFamily::Inet, SockType::Stream)?;
        if self.filter.lock_into(&scratch).is_err() {
            self.filter = DropFilter::Unavailable;
        }
        Ok(match self.filter {
            DropFilter::Unavailable => Enforcement::TcpOnly,
            DropFilter::Ebpf(_) | DropFilter::Classic => Enforcement::UnlessLocked,
        })
    }

    /// Makes a listener revocable, before any peer has a copy of its socket.
    ///
    /// # Errors
    /// ENOSPC if the allowlist has no slot for this socket; the socket then has no filter, and another socket may have a slot.
    pub fn protect(&self, endpoint: &Endpoint, socket: impl AsFd) -> nix::Result<Revocability> {
        let Some(transport) = transport(endpoint) else {
            return Ok(Revocability::UnixSocket);
        };
        match &self.allowlist {
            Some(allowlist) => allowlist.add(socket, transport).map(Revocability::Listed),
            None => Ok(Revocability::NotListed),
        }
    }

    /// How a listener of another broker can be revoked. One that is not listed yet is listed if its filter is not locked.
    pub fn import(&self, endpoint: &Endpoint, socket: impl AsFd) -> Revocability {
        let Some(transport) = transport(endpoint) else {
            return Revocability::UnixSocket;
        };
        let listed = self.allowlist.as_ref().and_then(|allowlist| {
            allowlist.find(&socket).or_else(|_| allowlist.add(&socket, transport)).ok()
        });
        listed.map_or(Revocability::NotListed, Revocability::Listed)
    }

    /// A TCP listener takes no new connection from now on; handshakes that have begun continue.
    pub fn drain(&self, revocability: Revocability, socket: Option<&OwnedFd>) {
        match (revocability, &self.allowlist) {
            (Revocability::Listed(slot), Some(allowlist)) => allowlist.drain(slot),
            _ => {
                // If the kernel refuses it, the listener is disabled nevertheless, and clients may see a reset.
                let _ = socket.map(bpf::attach_drop_syn);
            }
        }
    }

    /// Disables a socket for good: the kernel resets connections in its queue and refuses new ones. Without the socket, it only
    /// receives no packet any more.
    ///
    /// # Errors
    /// The socket was shut down, but a process that holds a copy of it can use it again.
    pub fn revoke(&self, revocability: Revocability, socket: Option<&OwnedFd>) -> nix::Result<()> {
        let Some(socket) = socket else {
            return match (revocability, &self.allowlist) {
                (Revocability::Listed(slot), Some(allowlist)) => {
                    allowlist.remove(slot);
                    Ok(())
                }
                _ => Err(Errno::EBADF),
            };
        };
        // Shut down first: the kernel answers the last packet of a handshake with a reset when it finds no listener. The
        // filter would drop that packet without an answer, and the client would wait for its own timeout.
        let shut_down = match socket::shut_down(socket) {
            // A UDP socket, and a listener that its holder has shut down, have no connection to shut down.
            Err(Errno::ENOTCONN) => Ok(()),
            other => other,
        };
        // The client of a revoked TCP listener then gets an answer, and a revoked UDP socket takes no packet from others. The
        // kernel refuses it for a socket that its holder has bound to an interface.
        let nowhere = || sockopt::bind_to_no_interface(socket);
        match (revocability, &self.allowlist) {
            (Revocability::UnixSocket, _) => shut_down,
            (Revocability::Listed(slot), Some(allowlist)) => {
                allowlist.remove(slot);
                let _ = nowhere(); // the filter is enough
                Ok(())
            }
            _ => {
                let locked = self.filter.lock_into(socket);
                match (nowhere(), sockopt::protocol(socket)) {
                    // A process without CAP_NET_RAW cannot undo it.
                    (Ok(()), Ok(libc::IPPROTO_TCP)) => Ok(()),
                    _ => locked,
                }
            }
        }
    }

    /// Revokes every socket that is not among these.
    pub fn revoke_others(&self, kept: impl Iterator<Item = Revocability>) {
        if let Some(allowlist) = &self.allowlist {
            allowlist.retain(kept.filter_map(|revocability| match revocability {
                Revocability::Listed(slot) => Some(slot),
                Revocability::NotListed | Revocability::UnixSocket => None,
            }));
        }
    }
}

fn transport(endpoint: &Endpoint) -> Option<Transport> {
    match endpoint {
        Endpoint::Tcp(_) => Some(Transport::Tcp),
        Endpoint::Udp(_) => Some(Transport::Udp),
        Endpoint::UnixStream(_) | Endpoint::UnixSeqpacket(_) => None,
    }
}

/// Sends packets through a filter on a pair of sockets: one while the receiver is listed, one after its removal.
fn verify(allowlist: &Allowlist) -> nix::Result<()> {
    let (sender, receiver) = std::os::unix::net::UnixDatagram::pair().map_err(os_errno)?;
    receiver.set_nonblocking(true).map_err(os_errno)?;
    let slot = allowlist.add(&receiver, Transport::Udp)?;
    let mut packet = [0];
    sender.send(&packet).map_err(os_errno)?;
    let listed = receiver.recv(&mut packet);
    allowlist.remove(slot);
    sender.send(&packet).map_err(os_errno)?;
    match (listed, receiver.recv(&mut packet), allowlist.find(&receiver)) {
        (Ok(1), Err(error), Err(Errno::ENOENT)) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        _ => Err(Errno::EPROTO),
    }
}

fn os_errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

impl DropFilter {
    /// Falls back to the classic program in a container or user namespace that forbids eBPF.
    fn load() -> Self {
        let mut program = Program::default();
        program.set(0, 0);
        program.exit();
        program.load().map_or(Self::Classic, Self::Ebpf)
    }

    fn lock_into(&self, socket: impl AsFd) -> nix::Result<()> {
        match self {
            Self::Ebpf(program) => sockopt::attach_bpf(&socket, program)?,
            Self::Classic => bpf::attach_drop_all(&socket)?,
            Self::Unavailable => return Err(Errno::EPERM),
        }
        sockopt::lock_filter(&socket)
    }
}
