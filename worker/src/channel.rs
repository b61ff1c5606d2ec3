//! Reaching the broker: the channel that a worker inherits, or one through the control socket.
//!
//! This opens the channel and says nothing on it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::Error;
use crate::inherited;

/// Where the broker's control socket is unless its configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/portreeve/broker.sock";

/// The worker's end of a channel, on which nothing was said yet.
#[derive(Debug)]
pub struct Channel(pub(crate) UnixDatagram);

impl Channel {
    /// The channel that the broker gave to its worker: the descriptor that `PORTREEVE_CHANNEL` names.
    ///
    /// # Errors
    /// [`Error::Inherited`] where there is none, where it is no channel, and when it is asked for again.
    pub fn from_environment() -> Result<Self, Error> {
        Ok(Self(inherited::channel()?.into()))
    }

    /// A channel through the broker's control socket.
    ///
    /// # Errors
    /// [`Error::Connect`] with the reason and the remedy.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let connect = || -> Result<OwnedFd, Errno> {
            let address = SocketAddrUnix::new(path)?;
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )?;
            rustix::net::connect(&socket, &address)?;
            Ok(socket)
        };
        connect().map(|socket| Self(socket.into())).map_err(|errno| Error::Connect {
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
        Self(socket)
    }
}
