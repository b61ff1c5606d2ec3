//! What can go wrong between a client and its broker. Each error says what failed, on what, and what to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use portreeve_protocol::{Endpoint, Fault};

use crate::inherited::InheritedError;

/// Why a request has no reply, or there is no session to ask in.
///
/// It can be cloned, because the end of a session is told to everyone who waits in it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The broker refused or could not do it. The session goes on.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The broker ended the session and said why.
    #[error("the broker ended the session: {0}")]
    Ended(Fault),
    /// The broker hung up. Sockets that it handed over go on serving.
    #[error("the broker has closed the channel; sockets that it handed over go on serving")]
    Closed,
    /// The broker speaks another version of the protocol.
    #[error(
        "the broker speaks version {found} of the protocol and this program version {}: install one release of both",
        portreeve_protocol::VERSION
    )]
    Version {
        /// The version in the broker's frame.
        found: u16,
    },
    /// The reply came, but this process had no room for its sockets. The session goes on, the broker still
    /// has the listeners, and asking again gives the same sockets.
    #[error(
        "the reply's sockets were lost because this process has no descriptors left: close some or raise its \
         limit of open files (RLIMIT_NOFILE), then ask again"
    )]
    DescriptorsLost,
    /// The broker sent what the protocol does not allow.
    #[error("the broker broke the protocol: {0}")]
    Protocol(Arc<str>),
    /// The request does not fit in a frame.
    #[error("the request cannot be sent: {0}: ask for less at once")]
    Request(Arc<str>),
    /// A listener was to be used as another kind of socket than it is.
    #[error("{endpoint} is not {wanted}")]
    WrongKind {
        /// The listener's endpoint.
        endpoint: Endpoint,
        /// What was asked for.
        wanted: &'static str,
    },
    /// No broker could be reached at its control socket.
    #[error("no broker is reached at {}: {source}: {remedy}", path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
        /// What to do.
        remedy: &'static str,
    },
    /// The environment names no usable descriptor.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// A system call failed.
    #[error("{call} failed: {source}")]
    Io {
        /// What was being done.
        call: &'static str,
        /// Why.
        source: Arc<io::Error>,
    },
}

impl Error {
    /// For `map_err`: names the call that failed.
    pub(crate) fn io<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Io { call, source: Arc::new(source.into()) }
    }

    pub(crate) fn protocol(what: impl std::fmt::Display) -> Error {
        Error::Protocol(what.to_string().into())
    }
}
