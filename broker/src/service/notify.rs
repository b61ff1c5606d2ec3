//! What the service manager is told: READY=1, STOPPING=1. See sd_notify(3).

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::failure::Failure;

/// The service manager's socket, connected before there is an empty root; none where nobody asked.
#[derive(Debug)]
pub struct Notifier(Option<UnixDatagram>);

impl Notifier {
    /// Connects to the socket that NOTIFY_SOCKET names, and forgets the name.
    pub fn connect() -> Result<Self, Failure> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self(None));
        };
        let connect = || {
            let text = path.as_encoded_bytes();
            let address = match text.strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(&path)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            Ok(socket)
        };
        let socket = connect().map_err(|error: std::io::Error| {
            Failure::os("notify", &format!("connecting to NOTIFY_SOCKET {path:?}"), error)
        })?;
        Ok(Self(Some(socket)))
    }

    /// The broker serves.
    pub fn ready(&self) {
        self.tell("READY=1");
        tracing::info!("ready");
    }

    /// The broker is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, state: &str) {
        if let Some(Err(error)) = self.0.as_ref().map(|socket| socket.send(state.as_bytes())) {
            tracing::warn!(%error, state, "the service manager could not be told");
        }
    }
}
