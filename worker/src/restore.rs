//! What both clients need to open a session again: the control socket, the pauses, and the listeners of this program's guards.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use portreeve_protocol::message::{Listen, ListenerId};
use portreeve_protocol::{Fault, FaultCode};
use rustix::net::sockopt::socket_cookie;

use crate::build::RegisteredListener;
use crate::error::Error;
use crate::listener::Registration;
use crate::request::ReceivedListener;

/// The pause before the second attempt; it doubles after each attempt.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Time limit of one request while a session is restored.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How a session is reopened.
#[derive(Clone, Debug)]
pub(crate) struct ReconnectTarget {
    /// The control socket.
    pub path: PathBuf,
    /// The name of this program in the broker's logs.
    pub name: String,
}

/// Whether the next broker may accept the session after this error.
pub(crate) fn is_temporary(error: &Error) -> bool {
    match error {
        Error::Closed | Error::Io { .. } => true,
        Error::Ended(fault) => fault.code == FaultCode::Busy,
        _ => false,
    }
}

/// A listener that has a guard, in a session that reconnects.
#[derive(Clone)]
pub(crate) struct HeldListener {
    pub registration: Registration,
    pub listen: Listen,
    /// The kernel's number of the guard's socket. See SO_COOKIE in socket(7).
    cookie: Option<u64>,
}

impl HeldListener {
    /// The listener of a guard, by [`Registration::key`].
    pub fn new(listen: &Listen, (registration, socket): &RegisteredListener) -> (usize, Self) {
        let (registration, listen, cookie) = (registration.clone(), listen.clone(), cookie(socket));
        (registration.key(), Self { registration, listen, cookie })
    }

    /// Whether the listener ended with its broker, which kept no copy of the socket; records that it is lost.
    pub fn ended_with_its_broker(&self) -> bool {
        let is_kept = self.listen.mode().kept;
        if !is_kept {
            self.registration.set_lost(Error::Fault(self.stopped()));
        }
        !is_kept
    }

    /// Records the next broker's reply to the request for this listener. Returns a listener to stop: no guard has it.
    ///
    /// # Errors
    /// The session has ended again.
    pub fn restored(&self, reply: Result<ReceivedListener, Error>) -> Result<Option<ListenerId>, Error> {
        match reply {
            Ok((id, socket)) => {
                if self.registration.is_wanted() && cookie(&socket) == self.cookie {
                    self.registration.set_id(Some(id));
                    return Ok(None);
                }
                // This is not the socket of the guard, and no code of this program accepts connections on it.
                self.registration.set_lost(Error::Fault(self.stopped()));
                return Ok(Some(id));
            }
            // The fault has an errno, so bind(2) failed and no peer has the listener: the guard's own socket occupies the
            // endpoint and still works.
            Err(Error::Fault(fault)) if fault.code == FaultCode::InUse && fault.errno != 0 => {}
            // The broker has the listener, and this process has no descriptor for another copy.
            Err(Error::DescriptorsLost) => {}
            Err(why @ Error::Fault(_)) => self.registration.set_lost(why),
            Err(why) => return Err(why),
        }
        Ok(None)
    }

    fn stopped(&self) -> Fault {
        let message = format!("the listener on {} was stopped when its broker ended", self.listen.endpoint);
        Fault::new(FaultCode::NotFound, &message).remedy("request it again")
    }
}

/// The kernel's number of a socket.
fn cookie(socket: &OwnedFd) -> Option<u64> {
    socket_cookie(socket).ok()
}
