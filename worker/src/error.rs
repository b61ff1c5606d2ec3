//! The errors of a client. Each message says what failed, on what, why, and what to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use portreeve_protocol::{Endpoint, Fault};

use crate::inherited::InheritedError;

/// The reason that a request has no reply, or that there is no session.
///
/// It is `Clone`, because the end of a session is reported to every caller that waits for a reply.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The broker refused the request or could not carry it out. The session continues.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The broker ended the session and gave the reason.
    #[error("the broker ended the session: {0}")]
    Ended(Fault),
    /// The broker closed the channel. Sockets received from it remain usable.
    #[error("the broker closed the session. Sockets received from it remain usable")]
    Closed,
    /// The broker speaks another version of the protocol.
    #[error(
        "cannot talk to the broker: it speaks protocol version {found}, this program version {}. Install the same release \
         of both",
        portreeve_protocol::VERSION
    )]
    Version {
        /// The version in the broker's frame.
        found: u16,
    },
    /// The reply arrived, but this process had no free descriptors for its sockets. The session continues, the broker still has
    /// the listeners, and repeating the request returns the same sockets.
    #[error(
        "cannot receive the sockets of a reply: this process has no free file descriptors. Close some or raise its limit \
         of open files (RLIMIT_NOFILE), then repeat the request"
    )]
    DescriptorsLost,
    /// The broker violated the protocol.
    #[error("the broker violated the protocol: {0}")]
    Protocol(Arc<str>),
    /// A value of the request exceeds its maximum length.
    #[error("cannot send the request: {0}")]
    Request(Arc<str>),
    /// The socket of a listener does not have the requested type.
    #[error("{endpoint} is not {wanted}")]
    WrongKind {
        /// The listener's endpoint.
        endpoint: Endpoint,
        /// The requested type.
        wanted: &'static str,
    },
    /// Connecting to the control socket of the broker failed.
    #[error("cannot connect to the broker at {}: {source}. {remedy}", path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// The cause.
        source: Arc<io::Error>,
        /// What to do.
        remedy: &'static str,
    },
    /// The environment names no usable inherited descriptor.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What failed, such as `cannot send a request to the broker`.
        what: &'static str,
        /// The cause.
        source: Arc<io::Error>,
    },
}

impl Error {
    /// For `map_err`: says what failed.
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Io { what, source: Arc::new(source.into()) }
    }

    pub(crate) fn protocol(what: impl std::fmt::Display) -> Error {
        Error::Protocol(what.to_string().into())
    }
}
