//! Reaching the broker: the channel that a worker inherits, or one through the control socket.
//!
//! This opens the channel and says nothing on it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::Error;
use crate::inherited;

/// Where the broker's control socket is unless its configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/portreeve/broker.sock";

/// The worker's end of a channel, on which nothing was said yet.
#[derive(Debug)]
pub struct Channel {
    pub(crate) socket: UnixDatagram,
    /// Where a session is opened again that lost its broker.
    #[cfg(feature = "tokio")]
    pub(crate) again: Option<PathBuf>,
}

impl Channel {
    /// The channel that the broker gave to its worker: the descriptor that `PORTREEVE_CHANNEL` names.
    ///
    /// # Errors
    /// [`Error::Inherited`] where there is none, where it is no channel, and when it is asked for again.
    pub fn from_environment() -> Result<Self, Error> {
        Ok(UnixDatagram::from(inherited::channel()?).into())
    }

    /// A channel through the broker's control socket.
    ///
    /// # Errors
    /// [`Error::Connect`] with the reason and the remedy.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_with(path.as_ref(), SocketFlags::CLOEXEC)
    }

    /// The same without waiting for room in the queue of the broker.
    #[cfg(feature = "tokio")]
    pub(crate) fn connect_at_once(path: &Path) -> Result<Self, Error> {
        Self::connect_with(path, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }

    /// Has the asynchronous client outlast its broker: where the channel is at its end, the session is opened again through
    /// this control socket, as often as it takes, with pauses of up to 5 s. The blocking client pays no attention to it.
    ///
    /// Sockets of listeners serve on meanwhile, and requests wait: whoever does not want to wait for ever bounds them. Those
    /// that were under way are sent again where that makes no difference, and otherwise fail with [`Error::Closed`]. The
    /// next broker is asked for what the guards hold: see `Listener::lost` and `Lease`.
    #[cfg(feature = "tokio")]
    #[must_use]
    pub fn reconnect_through(self, path: impl Into<PathBuf>) -> Self {
        Self { again: Some(path.into()), ..self }
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
                Errno::NOENT | Errno::CONNREFUSED => "start portreeved, or name its control socket",
                Errno::ACCESS | Errno::PERM => {
                    "ask the administrator for a place in the group that owns the socket"
                }
                Errno::PROTOTYPE => "this is another program's socket, name the broker's",
                Errno::NAMETOOLONG => "a Unix socket's path has at most 107 bytes",
                _ => "see connect(2)",
            },
        })
    }
}

/// Takes a connected SOCK_SEQPACKET socket, whoever made it.
impl From<UnixDatagram> for Channel {
    fn from(socket: UnixDatagram) -> Self {
        Self {
            socket,
            #[cfg(feature = "tokio")]
            again: None,
        }
    }
}
