//! Reconnection: when the channel of a session ends, the client connects to the control socket again, and requests the
//! listeners of this program's guards again.
//!
//! Promises: the sockets of guards stay open and unchanged meanwhile. The pause between two attempts is at least
//! [`FIRST_PAUSE`] and at most [`MAX_PAUSE`]. Every subscriber learns that events may be missing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use portreeve_protocol::{Fault, FaultCode};
use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::build;
use crate::channel::Channel;
use crate::error::Error;
use crate::request::Request;
use crate::session_state::{HeldListener, SessionStatus, SharedSession, cookie};

/// The pause before the second attempt; it doubles after each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Time limit of one request while a session is restored.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How a session is reopened.
#[derive(Debug)]
pub(crate) struct ReconnectTarget {
    /// The control socket.
    pub path: PathBuf,
    /// The name of this program in the broker's logs.
    pub name: String,
}

/// Supervises a session from its first channel to the end of its last one.
pub(crate) async fn supervise(shared: Arc<SharedSession>, mut reader: JoinHandle<Error>) {
    loop {
        // A reader that panicked has dropped its channel.
        let why = reader.await.unwrap_or(Error::Closed);
        let Some(target) = shared.reconnect.as_ref().filter(|_| shared.survives(&why)) else { break };
        match shared.reconnect(target).await {
            Ok(next) => reader = next,
            Err(why) => {
                let mut state = shared.state();
                state.connection.closed = Some(why);
                state.connection.subscribers.wake_all();
                break;
            }
        }
    }
    shared.status.send_replace(SessionStatus::Closed);
}

impl SharedSession {
    /// Retries until a broker accepts the session, or a broker uses another protocol version or violates the protocol.
    async fn reconnect(self: &Arc<Self>, target: &ReconnectTarget) -> Result<JoinHandle<Error>, Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_reconnect(target).await {
                Err(why @ (Error::Version { .. } | Error::Protocol(_))) => return Err(why),
                Err(why) if self.state().closed => return Err(why),
                Err(_) => sleep(pause).await,
                Ok(reader) => return Ok(reader),
            }
            pause = MAX_PAUSE.min(pause * 2);
        }
    }

    async fn try_reconnect(self: &Arc<Self>, target: &ReconnectTarget) -> Result<JoinHandle<Error>, Error> {
        let channel = Channel::connect_nonblocking(&target.path)?.socket;
        let channel = UnixDatagram::from_std(channel).map_err(Error::io("cannot prepare the channel"))?;
        let channel = Arc::new(channel);
        {
            let mut state = self.state();
            if state.closed {
                return Err(Error::Closed);
            }
            state.invalidate();
            state.channel = channel.clone();
            state.connection.reset();
        }
        let reader = tokio::spawn(self.clone().read_loop(channel.clone()));
        match self.restore(&channel, &target.name).await {
            Ok(()) => {
                self.status.send_replace(SessionStatus::Connected);
                Ok(reader)
            }
            Err(why) => {
                // The shutdown ends the session and its listeners. It fails only if the session has ended already.
                let _ = channel.shutdown(std::net::Shutdown::Both);
                let _ = reader.await; // its error is the result of this shutdown
                Err(why)
            }
        }
    }

    async fn request_with_timeout<O: Request>(
        &self,
        channel: &UnixDatagram,
        request: &O,
    ) -> Result<O::Output, Error> {
        timeout(REQUEST_TIMEOUT, self.request(channel, request)).await.map_err(|_| Error::Closed)?
    }

    /// Opens the session, subscribes, and requests the listeners of guards.
    async fn restore(&self, channel: &UnixDatagram, name: &str) -> Result<(), Error> {
        let welcome = self.request_with_timeout(channel, &build::hello(name)).await?;
        self.state().greet(welcome);
        let subscription = self.state().connection.subscribers.resubscribe();
        if subscription.follow {
            match self.request_with_timeout(channel, &subscription).await {
                // A broker that denies the subscription sends no events.
                Ok(_) | Err(Error::Fault(_)) => {}
                Err(why) => return Err(why),
            }
        }
        let held: Vec<HeldListener> = self.state().held.values().cloned().collect();
        for listener in &held {
            self.restore_listener(channel, listener).await?;
        }
        self.state().held.retain(|_, listener| listener.registration.is_wanted());
        Ok(())
    }

    /// Requests the listener of a guard again.
    async fn restore_listener(&self, channel: &UnixDatagram, held: &HeldListener) -> Result<(), Error> {
        let registration = &held.registration;
        match self.request_with_timeout(channel, &held.listen).await {
            Ok((id, socket)) => {
                let mut state = self.state();
                if registration.is_wanted() && cookie(&socket) == held.cookie {
                    registration.set_id(Some(id));
                    return Ok(());
                }
                // This is not the socket of the guard, and no code of this program accepts connections on it.
                state.queue_stop(id);
                registration.set_lost(Error::Fault(stopped(held)));
            }
            // The fault has an errno, so bind(2) failed and no peer has the listener: the guard's own socket occupies the
            // endpoint and still works.
            Err(Error::Fault(fault)) if fault.code == FaultCode::InUse && fault.errno != 0 => {}
            // The broker has the listener, and this process has no descriptor for another copy.
            Err(Error::DescriptorsLost) => {}
            Err(why @ Error::Fault(_)) => registration.set_lost(why),
            Err(why) => return Err(why),
        }
        Ok(())
    }
}

fn stopped(held: &HeldListener) -> Fault {
    let message = format!("the listener on {} was stopped when its broker ended", held.listen.endpoint);
    Fault::new(FaultCode::NotFound, &message).remedy("request it again")
}
