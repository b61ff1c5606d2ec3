//! The channel to the broker: inherited by the broker's worker, or connected through the control socket.
//!
//! This module opens channels and sends nothing on them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::Error;
use crate::inherited;

/// The path of the broker's control socket unless its configuration names another.
pub const DEFAULT_SOCKET: &str = "/run/portreeve/broker.sock";

/// The client's end of a channel on which no session is open yet.
#[derive(Debug)]
pub struct Channel {
    pub(crate) socket: UnixDatagram,
    /// The control socket that a lost session is reopened through.
    pub(crate) reconnect_path: Option<PathBuf>,
}

impl Channel {
    /// The channel that the broker gave to its worker: the descriptor that `PORTREEVE_CHANNEL` names.
    ///
    /// # Errors
    /// [`Error::Inherited`] if the variable is not set, the descriptor is not a channel, or it was taken before.
    pub fn from_environment() -> Result<Self, Error> {
        Ok(UnixDatagram::from(inherited::channel()?).into())
    }

    /// Connects to the broker's control socket.
    ///
    /// # Errors
    /// [`Error::Connect`] with the cause and the remedy.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_with(path.as_ref(), SocketFlags::CLOEXEC)
    }

    /// Connects, or fails at once if the broker's queue of connections is full.
    pub(crate) fn connect_nonblocking(path: &Path) -> Result<Self, Error> {
        Self::connect_with(path, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }

    /// Lets the client survive the end of its broker. When the session ends, the client reopens it through this control socket,
    /// and retries until it succeeds, with pauses of up to 5 s. The blocking client does so in a thread of its own.
    ///
    /// Sockets of listeners remain usable meanwhile. New requests wait for the next broker: put a time limit on those that
    /// must not wait. A request that is in flight is sent again if repeating it changes nothing; otherwise it fails with
    /// [`Error::Closed`]. The client requests the listeners and addresses of its guards from the next broker: see
    /// `Listener::lost` and `Lease`.
    #[must_use]
    pub fn reconnect_through(self, path: impl Into<PathBuf>) -> Self {
        Self { reconnect_path: Some(path.into()), ..self }
    }

    fn connect_with(path: &Path, flags: SocketFlags) -> Result<Self, Error> {
        let connect = || -> Result<OwnedFd, Errno> {
            let address = SocketAddrUnix::new(path)?;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            rustix::net::connect(&socket, &address)?;
            Ok(socket)
        };
        connect().map(|socket| UnixDatagram::from(socket).into()).map_err(|errno| Error::Connect {
            path: path.to_owned(),
            source: Arc::new(io::Error::from(errno)),
            remedy: match errno {
                Errno::NOENT | Errno::CONNREFUSED => "Start portreeved, or name the control socket of its configuration",
                Errno::ACCESS | Errno::PERM => {
                    "Run as a user or group that may write to the control socket: see socket_mode and socket_group in \
                     portreeve.conf(5)"
                }
                Errno::PROTOTYPE => "This socket belongs to another program. Name the control socket of the broker",
                Errno::NAMETOOLONG => "The path of a Unix socket has at most 107 bytes",
                _ => "See connect(2)",
            },
        })
    }
}

/// A channel from a connected SOCK_SEQPACKET socket.
impl From<UnixDatagram> for Channel {
    fn from(socket: UnixDatagram) -> Self {
        Self { socket, reconnect_path: None }
    }
}
