//! The state that the tasks and callers of an asynchronous session share: its present channel, the connection state, and
//! the listeners of its guards.
//!
//! Promises: stops of dropped guards are sent before any later request. A number of one channel is never
//! used on another.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use portreeve_protocol::List;
use portreeve_protocol::message::{Listen, ListenerId, Stop, Welcome};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::watch;

use crate::connection::{Connection, RequestId};
use crate::error::Error;
use crate::listener::Registration;
use crate::removals::Removals;
use crate::request::Request;
use crate::restore::{HeldListener, ReconnectTarget, is_temporary};

/// Whether a session has a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionStatus {
    Connected,
    /// The client tries to connect to the next broker.
    Reconnecting,
    /// The session has ended for good.
    Closed,
}

pub(crate) struct SessionState {
    pub channel: Arc<UnixDatagram>,
    pub connection: Connection,
    pub welcome: Option<Arc<Welcome>>,
    /// Number of channels before this one.
    pub generation: u64,
    /// The listeners of guards, by [`Registration::key`].
    pub held: HashMap<usize, HeldListener>,
    /// Whether the program has dropped the session.
    pub closed: bool,
    /// Whether the present broker has accepted the session: requests before its first reply would end it.
    greeted: bool,
    /// Stops of dropped guards that are not sent yet. They are sent before any later request, so that a new request for
    /// the same endpoint does not return a listener that is about to stop.
    queued_stops: Vec<ListenerId>,
    /// Removals of dropped leases.
    pub removals: Removals,
}

pub(crate) struct SharedSession {
    state: Mutex<SessionState>,
    pub status: watch::Sender<SessionStatus>,
    pub reconnect: Option<ReconnectTarget>,
}

impl std::fmt::Debug for SharedSession {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("SharedSession").field("status", &self.status).finish_non_exhaustive()
    }
}

impl SessionState {
    /// Sends the queued stops and removals; `false` if the channel is full and some remain queued.
    fn flush(&mut self) -> bool {
        self.flush_stops() && self.flush_removals()
    }

    fn flush_stops(&mut self) -> bool {
        while !self.queued_stops.is_empty() {
            let stop = Stop { listeners: List::truncated(self.queued_stops.iter().copied()) };
            match self.connection.send_without_reply(self.channel.as_fd(), &stop) {
                Ok(true) => {
                    self.queued_stops.drain(..stop.listeners.len());
                }
                Ok(false) => return false,
                // The session has ended, and its listeners with it.
                Err(_) => self.queued_stops.clear(),
            }
        }
        true
    }

    fn flush_removals(&mut self) -> bool {
        !self.greeted || self.removals.send_all(&mut self.connection, self.channel.as_fd())
    }

    fn send<O: Request>(&mut self, channel: &UnixDatagram, request: &O) -> io::Result<SendResult> {
        if !self.flush() {
            return Err(ErrorKind::WouldBlock.into());
        }
        match self.connection.send(channel.as_fd(), request) {
            Ok(Some(id)) => Ok(Ok(id)),
            Ok(None) => Err(ErrorKind::WouldBlock.into()),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Receives all frames that have arrived.
    fn receive(&mut self, channel: &UnixDatagram) -> io::Result<Result<(), Error>> {
        loop {
            match self.connection.receive(channel.as_fd()) {
                // Nothing else can have arrived. The kernel still reports the end of the session.
                Ok(true) if self.connection.expects_nothing() && self.queued_stops.is_empty() => {
                    return Err(ErrorKind::WouldBlock.into());
                }
                Ok(true) => {}
                // If the channel was full, replies follow, so queued requests are retried after each of them.
                Ok(false) => {
                    self.flush_stops();
                    return Err(ErrorKind::WouldBlock.into());
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Records that a broker has accepted the session.
    pub fn greet(&mut self, welcome: Welcome) {
        self.welcome = Some(Arc::new(welcome));
        self.greeted = true;
        self.flush();
    }

    /// Records that the channel has ended, so that its listener numbers are invalid. Removals remain queued, because a lease
    /// does not end with the session.
    pub fn invalidate(&mut self) {
        self.generation += 1;
        self.greeted = false;
        self.queued_stops.clear();
        self.held.values().for_each(|listener| listener.registration.set_id(None));
    }

    /// Sends the stop of a listener now, or before the next request, or after the next reply.
    pub fn queue_stop(&mut self, id: ListenerId) {
        self.queued_stops.push(id);
        self.flush();
    }

    /// Sends the removal of an address now, or after the replies to others, before the next request, or to the next broker.
    pub fn queue_removal(&mut self, address: IpAddr, epoch: u64) {
        self.removals.queue(address, epoch);
        self.send_one_removal();
    }

    pub fn send_one_removal(&mut self) {
        if self.greeted && self.flush_stops() {
            self.removals.send_one(&mut self.connection, self.channel.as_fd());
        }
    }

    /// Stops the listener of a dropped guard. While the session reconnects, its registration is kept, because the next broker
    /// may have the listener.
    pub fn guard_dropped(&mut self, registration: &Registration, status: SessionStatus) {
        registration.set_unguarded();
        match registration.id() {
            Some(id) => self.queue_stop(id),
            None if status == SessionStatus::Reconnecting => return,
            None => {}
        }
        self.held.remove(&registration.key());
    }
}

type SendResult = Result<RequestId, Error>;

impl SharedSession {
    pub fn new(channel: UnixDatagram, reconnect: Option<ReconnectTarget>) -> Self {
        let state = SessionState {
            channel: Arc::new(channel),
            connection: Connection::new(),
            welcome: None,
            generation: 0,
            held: HashMap::new(),
            closed: false,
            greeted: false,
            queued_stops: Vec::new(),
            removals: Removals::default(),
        };
        Self { state: Mutex::new(state), status: watch::Sender::new(SessionStatus::Connected), reconnect }
    }

    pub fn state(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the session continues after this error: it reconnects, and the error is not about the protocol.
    pub fn survives(&self, error: &Error) -> bool {
        is_temporary(error) && self.reconnect.is_some()
    }

    /// Receives until the channel ends, and returns the reason.
    pub async fn read_loop(self: Arc<Self>, channel: Arc<UnixDatagram>) -> Error {
        let receive = || {
            let mut state = self.state();
            let received = state.receive(&channel);
            if let Ok(Err(error)) = &received
                && self.survives(error)
            {
                state.invalidate();
                self.status.send_replace(SessionStatus::Reconnecting);
            }
            received
        };
        match channel.async_io(Interest::READABLE, receive).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => Error::Closed,
            Err(error) => Error::io("cannot wait for a reply of the broker")(error),
        }
    }

    /// Waits until the session has a channel, and returns it with its generation.
    pub async fn current_channel(&self) -> (Arc<UnixDatagram>, u64) {
        if *self.status.borrow() == SessionStatus::Reconnecting {
            let mut status = self.status.subscribe();
            let _ = status.wait_for(|status| *status != SessionStatus::Reconnecting).await; // `self` has the sender
        }
        let state = self.state();
        (state.channel.clone(), state.generation)
    }

    /// Waits until the channel of this generation has ended.
    pub async fn generation_ended(&self, generation: u64) {
        let mut status = self.status.subscribe();
        loop {
            let closed = *status.borrow_and_update() == SessionStatus::Closed;
            if closed || self.state().generation != generation || status.changed().await.is_err() {
                return;
            }
        }
    }

    /// Sends a request and returns its number.
    pub async fn send<O: Request>(&self, channel: &UnixDatagram, request: &O) -> SendResult {
        let send = || self.state().send(channel, request);
        channel
            .async_io(Interest::WRITABLE, send)
            .await
            .map_err(Error::io("cannot send a request to the broker"))?
    }

    /// Waits for the reply to a request in flight.
    pub async fn reply<O: Request>(&self, id: RequestId) -> Result<O::Output, Error> {
        let in_flight = InFlightRequest { shared: self, id };
        std::future::poll_fn(|context| self.state().connection.poll_reply::<O>(in_flight.id, context.waker()))
            .await
    }

    /// Sends a request on this channel and waits for its reply.
    pub async fn request<O: Request>(&self, channel: &UnixDatagram, request: &O) -> Result<O::Output, Error> {
        self.reply::<O>(self.send(channel, request).await?).await
    }

    /// Records listeners that guards will hold; `false` if the channel that returned them has ended already.
    pub fn record_held<'h>(
        &self,
        generation: u64,
        received: impl Iterator<Item = (&'h Listen, &'h (Registration, OwnedFd))>,
    ) -> bool {
        let mut state = self.state();
        if self.reconnect.is_some() && state.generation == generation {
            state.held.extend(received.map(|(listen, registered)| HeldListener::new(listen, registered)));
        }
        state.generation == generation
    }

    /// Waits for the replies to removals, at most this time for each, and queues those again that the broker had no room for.
    pub fn await_removals_within(&self, time: Timespec) {
        let channel = self.state().channel.clone();
        loop {
            let mut state = self.state();
            let SessionState { removals, connection, .. } = &mut *state;
            let _ = removals.poll(connection, &mut Context::from_waker(Waker::noop())); // either way what remains is waited for
            if removals.is_none_sent() {
                return;
            }
            drop(state);
            let arrived = poll(&mut [PollFd::new(&*channel, PollFlags::IN)], Some(&time));
            // The session has ended, or it has no reply in time.
            if !matches!(arrived, Ok(1)) || self.state().receive(&channel).is_ok() {
                return;
            }
        }
    }

    /// Sends the queued requests, if the channel has room within this time.
    pub fn flush_within(&self, time: Timespec) {
        let channel = self.state().channel.clone();
        if poll(&mut [PollFd::new(&*channel, PollFlags::OUT)], Some(&time)).is_ok() {
            self.state().flush();
        }
    }

    /// Ends the channel for both sides, after the queued requests.
    pub fn close(&self) {
        let mut state = self.state();
        state.flush();
        state.closed = true;
        // The reader sees the end as well. It fails only if the broker has closed its end.
        let _ = state.channel.shutdown(Shutdown::Both);
    }
}

/// A request in flight. If its caller stops waiting, its reply is dropped when it arrives.
struct InFlightRequest<'a> {
    shared: &'a SharedSession,
    id: RequestId,
}

impl Drop for InFlightRequest<'_> {
    fn drop(&mut self) {
        self.shared.state().connection.abandon(self.id);
    }
}
