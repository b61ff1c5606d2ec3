//! A session of the blocking client: the thread that sends a request receives until it has the reply.
//!
//! Promises: the state is locked for a whole request, so that each reply belongs to the thread that waits.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use portreeve_protocol::List;
use portreeve_protocol::message::{Stop, Welcome};

use super::reconnect;
use crate::build;
use crate::channel::Channel;
use crate::connection::Connection;
use crate::error::Error;
use crate::listener::Registration;
use crate::request::Request;
use crate::restore::{HeldListener, ReconnectTarget, is_temporary};

pub(super) struct Session {
    state: Mutex<State>,
    /// Notified when the session has another broker, or has ended for good.
    changed: Condvar,
    pub reconnect: Option<ReconnectTarget>,
}

pub(super) struct State {
    pub channel: Arc<UnixDatagram>,
    pub connection: Connection,
    pub welcome: Option<Arc<Welcome>>,
    /// The listeners of guards, if the session reconnects, by [`Registration::key`].
    pub held: HashMap<usize, HeldListener>,
    /// Whether no other broker follows.
    pub ended: bool,
}

impl State {
    pub fn new(channel: UnixDatagram) -> Self {
        let (channel, connection) = (Arc::new(channel), Connection::new());
        Self { channel, connection, welcome: None, held: HashMap::new(), ended: false }
    }

    /// Sends a request and waits for its reply.
    pub fn request<O: Request>(&mut self, request: &O) -> Result<O::Output, Error> {
        let channel = self.channel.clone();
        let id = loop {
            // The channel blocks, so it reports that it is full only for a moment.
            match self.connection.send(channel.as_fd(), request) {
                Ok(Some(id)) => break id,
                Ok(None) => std::thread::yield_now(),
                Err(Error::Closed) => return Err(self.receive_all()),
                Err(why) => return Err(why),
            }
        };
        loop {
            if let Poll::Ready(reply) = self.connection.poll_reply::<O>(id, Waker::noop()) {
                return reply;
            }
            // Only a channel with a time limit has nothing to receive.
            if !self.connection.receive(channel.as_fd())? {
                return Err(Error::Closed);
            }
        }
    }

    /// Receives what is left on a channel whose other end is closed, and returns the reason that the session ended.
    pub fn receive_all(&mut self) -> Error {
        loop {
            match self.connection.receive(self.channel.as_fd()) {
                Ok(true) => {}
                Ok(false) => return Error::Closed,
                Err(why) => return why,
            }
        }
    }

    /// Stops a listener without waiting for the reply. It fails only if the session has ended, and its listeners with it.
    pub fn stop(&mut self, registration: &Registration) {
        let stop = Stop { listeners: List::truncated(registration.id()) };
        let _ = self.connection.send_without_reply(self.channel.as_fd(), &stop);
    }
}

impl Session {
    /// Opens a session. If it reconnects, a thread does so when its broker ends.
    pub fn open(channel: Channel, name: &str) -> Result<Arc<Self>, Error> {
        let reconnect = channel.reconnect_path.map(|path| ReconnectTarget { path, name: name.to_owned() });
        channel.socket.set_nonblocking(false).map_err(Error::io("cannot prepare the channel"))?;
        let state = Mutex::new(State::new(channel.socket));
        let session = Arc::new(Self { state, changed: Condvar::new(), reconnect });
        let welcome = session.state().request(&build::hello(name));
        match welcome {
            Ok(welcome) => session.state().welcome = Some(Arc::new(welcome)),
            // The session says hello to the next broker.
            Err(why) if session.survives(&why) => {}
            Err(why) => return Err(why),
        }
        if session.reconnect.is_some() {
            let weak = Arc::downgrade(&session);
            let thread = std::thread::Builder::new().name("portreeve".to_owned());
            let started = thread.spawn(move || reconnect::supervise(&weak));
            started.map_err(Error::io("cannot start the thread that reconnects"))?;
        }
        Ok(session)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the session continues after this error.
    pub fn survives(&self, error: &Error) -> bool {
        self.reconnect.is_some() && is_temporary(error)
    }

    /// Wakes the threads that wait for a broker.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits until the session has a broker.
    pub fn await_broker<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> Result<MutexGuard<'a, State>, Error> {
        loop {
            match &state.connection.closed {
                None => return Ok(state),
                Some(why) if state.ended || !self.survives(why) => return Err(why.clone()),
                Some(_) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    pub fn call<O: Request>(&self, request: &O) -> Result<O::Output, Error> {
        self.call_and(request, |_, reply| reply)
    }

    /// Sends a request, waits for its reply, and calls a function with the state before another request is sent.
    pub fn call_and<O: Request, T>(
        &self,
        request: &O,
        then: impl FnOnce(&mut State, O::Output) -> T,
    ) -> Result<T, Error> {
        let mut state = self.await_broker(self.state())?;
        loop {
            match state.request(request) {
                Ok(reply) => return Ok(then(&mut state, reply)),
                // The broker may have carried out the request, so it is repeated only if that has no further effect.
                Err(why) if O::REPEATABLE && self.survives(&why) => state = self.await_broker(state)?,
                Err(why) => return Err(why),
            }
        }
    }

    /// Stops the listener of a guard, and waits for the reply.
    pub fn stop(&self, registration: &Registration) -> Result<(), Error> {
        let mut state = self.await_broker(self.state())?;
        // The number is valid only with the present broker.
        while let Some(id) = registration.id() {
            match state.request(&build::stop(&[id])?) {
                Ok(_) => break,
                Err(why) if self.survives(&why) => state = self.await_broker(state)?,
                Err(why) => return Err(why),
            }
        }
        state.held.remove(&registration.key());
        Ok(())
    }

    /// Stops the listener of a dropped guard. While the session has no broker, its registration is kept, because the next
    /// broker may have the listener.
    pub fn guard_dropped(&self, registration: &Registration) {
        let mut state = self.state();
        registration.set_unguarded();
        let waits = state.connection.closed.as_ref().is_some_and(|why| self.survives(why) && !state.ended);
        if !waits {
            state.stop(registration);
            state.held.remove(&registration.key());
        }
    }

    /// Forgets a listener whose guard does not exist any more.
    pub fn guard_released(&self, registration: &Registration) {
        self.state().held.remove(&registration.key());
    }
}

/// Ends the thread that reconnects.
impl Drop for Session {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = state.channel.shutdown(Shutdown::Both); // it fails only if the broker has closed its end
    }
}
