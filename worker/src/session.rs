//! A session of the asynchronous client: one task receives and delivers replies, callers send requests and wait.
//!
//! Promises: a caller that is not polled delays no other. Dropping the session ends it.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use portreeve_protocol::message::{Listen, ListenMany, Welcome};
use portreeve_protocol::{Event, Fault};
use rustix::event::Timespec;
use tokio::net::UnixDatagram;
use tokio::task::AbortHandle;

use crate::build::{self, RegisteredListener};
use crate::channel::Channel;
use crate::error::Error;
use crate::listener::Registration;
use crate::reconnect;
use crate::request::Request;
use crate::restore::ReconnectTarget;
use crate::session_state::{SessionStatus, SharedSession};
use crate::subscribers::{SubscriberId, Subscribers};

/// How long a destructor outside of a runtime waits for room in the channel.
const DROP_TIMEOUT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The pause before a removal that the broker had no room for is sent again.
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);

/// One session. Dropping it ends the session.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<SharedSession>,
    supervisor: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.close();
        self.supervisor.abort();
    }
}

impl Session {
    /// Starts the tasks of the session and sends the hello.
    pub async fn open(channel: Channel, name: &str) -> Result<Self, Error> {
        let target = channel.reconnect_path.map(|path| ReconnectTarget { path, name: name.to_owned() });
        let socket = channel.socket;
        let prepared = socket.set_nonblocking(true).and_then(|()| UnixDatagram::from_std(socket));
        let prepared = prepared.map_err(Error::io("cannot prepare the channel"))?;
        let shared = Arc::new(SharedSession::new(prepared, target));
        let (channel, _) = shared.current_channel().await;
        let reader = tokio::spawn(shared.clone().read_loop(channel.clone()));
        let supervisor = tokio::spawn(reconnect::supervise(shared.clone(), reader)).abort_handle();
        let session = Self { shared, supervisor };
        match session.shared.request(&channel, &build::hello(name)).await {
            Ok(welcome) => session.shared.state().greet(welcome),
            // The session says hello to the next broker.
            Err(why) if session.survives(&why) => {}
            Err(why) => return Err(why),
        }
        Ok(session)
    }

    pub fn welcome(&self) -> Option<Arc<Welcome>> {
        self.shared.state().welcome.clone()
    }

    /// Whether the session continues after this error of a request.
    pub fn survives(&self, error: &Error) -> bool {
        self.shared.survives(error)
    }

    /// Stops the listener of a dropped guard without waiting.
    pub fn guard_dropped(&self, registration: &Registration) {
        let status = *self.shared.status.borrow();
        self.shared.state().guard_dropped(registration, status);
    }

    /// Forgets a listener whose guard does not exist any more.
    pub fn guard_released(&self, registration: &Registration) {
        self.shared.state().held.remove(&registration.key());
    }

    /// Removes the address of a dropped guard without waiting for the reply.
    pub fn lease_dropped(&self, address: IpAddr, epoch: u64) {
        self.shared.state().queue_removal(address, epoch);
    }

    /// Whether the caller has to start [`Session::await_removals`]: no task has done so.
    pub fn begin_removals(&self) -> bool {
        !std::mem::replace(&mut self.shared.state().removals.awaited, true)
    }

    /// Waits until every queued removal is sent and has its reply, or the session has ended. The broker may have no room for
    /// one: it is then sent again.
    pub async fn await_removals(&self) {
        loop {
            let _ = self.shared.current_channel().await; // only the wait matters
            let refused = std::future::poll_fn(|context| {
                let state = &mut *self.shared.state();
                state.send_one_removal();
                state.removals.poll(&mut state.connection, context)
            });
            if refused.await {
                tokio::time::sleep(REMOVAL_PAUSE).await;
            }
            let mut state = self.shared.state();
            if state.removals.is_done() || *self.shared.status.borrow() == SessionStatus::Closed {
                state.removals.awaited = false;
                return;
            }
        }
    }

    /// Removes the address of a dropped guard, after the replies to earlier removals and if the channel has room soon. It
    /// blocks, for callers outside of a runtime.
    pub fn lease_dropped_blocking(&self, address: IpAddr, epoch: u64) {
        self.shared.await_removals_within(DROP_TIMEOUT);
        self.lease_dropped(address, epoch);
        self.shared.flush_within(DROP_TIMEOUT);
    }

    /// Stops the listener of a guard, and waits for the reply.
    pub async fn stop(&self, registration: &Registration) -> Result<(), Error> {
        loop {
            // The number is valid only with the broker of this channel.
            let (channel, generation) = self.shared.current_channel().await;
            let Some(id) = registration.id() else { break };
            match self.shared.request(&channel, &build::stop(&[id])?).await {
                Ok(_) => break,
                Err(why) if self.survives(&why) => self.shared.generation_ended(generation).await,
                Err(why) => return Err(why),
            }
        }
        self.shared.state().held.remove(&registration.key());
        Ok(())
    }

    /// Waits for the end of the session.
    pub async fn closed(&self) -> Error {
        let mut status = self.shared.status.subscribe();
        let _ = status.wait_for(|status| *status == SessionStatus::Closed).await; // `self.shared` has the sender
        self.shared.state().connection.closed.clone().unwrap_or(Error::Closed)
    }

    /// Waits until no broker has the listener any more.
    pub async fn lost(&self, registration: &Registration) -> Error {
        let mut status = self.shared.status.subscribe();
        loop {
            let closed = *status.borrow_and_update() == SessionStatus::Closed;
            if let Some(why) = registration.lost() {
                return why;
            }
            if closed || status.changed().await.is_err() {
                return self.closed().await;
            }
        }
    }

    /// The number of earlier brokers of this session.
    pub fn generation(&self) -> u64 {
        self.shared.state().generation
    }

    /// Waits until the session is connected to another broker than that of this generation; `false` if the session has ended
    /// for good.
    pub async fn reconnected(&self, generation: u64) -> bool {
        self.shared.generation_ended(generation).await;
        let _ = self.shared.current_channel().await; // only the wait matters
        *self.shared.status.borrow() != SessionStatus::Closed
    }

    /// Requests the subscription that the subscribers need, if the broker has not granted it yet.
    pub async fn subscribe(&self) -> Result<(), Error> {
        if let Some(missing) = self.with_subscribers(|subscribers| subscribers.missing_subscription()) {
            self.call(&missing).await?;
            self.with_subscribers(|subscribers| subscribers.set_subscription(missing));
        }
        Ok(())
    }

    /// Whether the broker allows this peer an operation.
    pub fn allows(&self, operation: &str) -> bool {
        let welcome = self.welcome();
        welcome.is_some_and(|welcome| welcome.operations.iter().any(|name| name.as_str() == operation))
    }

    /// Calls a function with the subscribers of this session.
    pub fn with_subscribers<T>(&self, call: impl FnOnce(&mut Subscribers) -> T) -> T {
        call(&mut self.shared.state().connection.subscribers)
    }

    /// Removes a subscriber, and ends the subscription after the last one.
    pub fn unsubscribe(&self, id: SubscriberId) {
        let mut state = self.shared.state();
        state.connection.subscribers.remove(id);
        if state.connection.subscribers.required_subscription().follow {
            return;
        }
        if let Some(none) = state.connection.subscribers.missing_subscription() {
            let channel = state.channel.clone();
            // If the channel is full or closed, events continue to arrive and are ignored.
            let _ = state.connection.send_without_reply(channel.as_fd(), &none);
            state.connection.subscribers.set_subscription(none);
        }
    }

    /// Waits for the next event of a subscriber.
    pub async fn next_event(&self, id: SubscriberId) -> Result<Event, Error> {
        let poll = |context: &mut std::task::Context<'_>| {
            let event = self.shared.state().connection.poll_event(id, context.waker());
            match event {
                // The gap at the next broker wakes it.
                std::task::Poll::Ready(Err(why)) if self.survives(&why) => std::task::Poll::Pending,
                event => event,
            }
        };
        std::future::poll_fn(poll).await
    }

    /// Sends a request and waits for its reply.
    pub async fn call<O: Request>(&self, request: &O) -> Result<O::Output, Error> {
        self.call_with_generation(request).await.map(|(reply, _)| reply)
    }

    /// Sends a request, and returns its reply with the generation of the broker that sent the reply.
    pub async fn call_with_generation<O: Request>(&self, request: &O) -> Result<(O::Output, u64), Error> {
        let shared = &*self.shared;
        loop {
            let (channel, generation) = shared.current_channel().await;
            let why = match shared.request(&channel, request).await {
                Ok(reply) => return Ok((reply, generation)),
                Err(why) => why,
            };
            // The broker may have carried out the request, so it is repeated only if that has no further effect.
            if !O::REPEATABLE || !shared.survives(&why) {
                return Err(why);
            }
            shared.generation_ended(generation).await;
        }
    }

    /// Requests a listener for a guard.
    pub async fn listen(&self, listen: &Listen) -> Result<RegisteredListener, Error> {
        loop {
            let ((id, socket), generation) = self.call_with_generation(listen).await?;
            let registered = (Registration::new(id), socket);
            if self.shared.record_held(generation, std::iter::once((listen, &registered))) {
                return Ok(registered);
            }
        }
    }

    /// Requests a batch of listeners for guards.
    pub async fn listen_many(
        &self,
        request: &ListenMany,
    ) -> Result<Vec<Result<RegisteredListener, Fault>>, Error> {
        loop {
            let (results, generation) = self.call_with_generation(request).await?;
            let registered = build::register(results);
            let requests: Vec<_> = request.requests().collect();
            let pairs = requests.iter().zip(&registered);
            let received = pairs.filter_map(|(listen, result)| Some((listen, result.as_ref().ok()?)));
            if self.shared.record_held(generation, received) {
                return Ok(registered);
            }
        }
    }
}
