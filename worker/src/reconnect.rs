//! Reconnection: when the channel of a session ends, the client connects to the control socket again, and requests the
//! listeners of this program's guards again.
//!
//! Promises: the sockets of guards stay open and unchanged meanwhile. The pause between two attempts is at least
//! [`FIRST_PAUSE`] and at most [`MAX_PAUSE`]. Every subscriber learns that events may be missing.

use std::sync::Arc;

use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::build;
use crate::channel::Channel;
use crate::error::Error;
use crate::request::Request;
use crate::restore::{FIRST_PAUSE, HeldListener, MAX_PAUSE, REQUEST_TIMEOUT, ReconnectTarget};
use crate::session_state::{SessionStatus, SharedSession};

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
        for listener in held.iter().filter(|listener| !listener.ended_with_its_broker()) {
            self.restore_listener(channel, listener).await?;
        }
        self.state().held.retain(|_, listener| listener.registration.is_wanted());
        Ok(())
    }

    /// Requests the listener of a guard again.
    async fn restore_listener(&self, channel: &UnixDatagram, held: &HeldListener) -> Result<(), Error> {
        let reply = self.request_with_timeout(channel, &held.listen).await;
        let mut state = self.state();
        if let Some(unwanted) = held.restored(reply)? {
            state.queue_stop(unwanted);
        }
        Ok(())
    }
}
