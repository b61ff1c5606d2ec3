//! A session of the asynchronous client: one task reads and sorts, callers send and wait for their own.
//!
//! It promises that a caller which is not polled holds nobody up, that stops of dropped guards go before any
//! later request, and that dropping the session ends it.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use portreeve_protocol::message::{ListenerId, Stop, Welcome};
use portreeve_protocol::{Event, List};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::ask;
use crate::channel::Channel;
use crate::error::Error;
use crate::exchange::{Exchange, RequestId};
use crate::followers::{FollowerId, Followers};
use crate::request::Request;

/// One session; it is over when this is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    welcome: Option<Welcome>,
}

struct Shared {
    channel: UnixDatagram,
    state: Mutex<State>,
}

struct State {
    exchange: Exchange,
    /// Listeners whose guards were dropped and whose stop is not sent yet. It goes before any later request,
    /// so a new request for the same endpoint does not get what is about to be stopped.
    dropped: Vec<ListenerId>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // The reader sees the end too, and is the last to let go of the channel.
        let _ = self.shared.channel.shutdown(Shutdown::Both);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Shared").field("channel", &self.channel).finish_non_exhaustive()
    }
}

impl State {
    /// Sends the stops of dropped guards; `false` where the channel is full and some are left.
    fn flush(&mut self, channel: &UnixDatagram) -> bool {
        while !self.dropped.is_empty() {
            let stop = Stop { listeners: List::first_of(self.dropped.iter().copied()) };
            match self.exchange.tell(channel.as_fd(), &stop) {
                Ok(true) => {
                    self.dropped.drain(..stop.listeners.len());
                }
                Ok(false) => return false,
                // The session is over and its listeners with it.
                Err(_) => self.dropped.clear(),
            }
        }
        true
    }

    fn send<O: Request>(&mut self, channel: &UnixDatagram, request: &O) -> io::Result<Sent> {
        if !self.flush(channel) {
            return Err(ErrorKind::WouldBlock.into());
        }
        match self.exchange.send(channel.as_fd(), request) {
            Ok(Some(id)) => Ok(Ok(id)),
            Ok(None) => Err(ErrorKind::WouldBlock.into()),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Receives what is there.
    fn receive(&mut self, channel: &UnixDatagram) -> io::Result<Result<(), Error>> {
        loop {
            match self.exchange.receive(channel.as_fd()) {
                Ok(true) => {}
                // A full channel has replies to come, so a stop that waits for room is tried again here.
                Ok(false) => {
                    self.flush(channel);
                    return Err(ErrorKind::WouldBlock.into());
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }
}

type Sent = Result<RequestId, Error>;

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(self: Arc<Self>) {
        let receive = || self.state().receive(&self.channel);
        while let Ok(Ok(())) = self.channel.async_io(Interest::READABLE, receive).await {}
    }
}

/// A request that was sent; when nobody waits for it any more its reply is dropped.
struct Asked<'a> {
    shared: &'a Shared,
    id: RequestId,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.shared.state().exchange.forget(self.id);
    }
}

impl Session {
    /// Starts the reader and says hello.
    pub async fn open(channel: Channel, name: &str) -> Result<Self, Error> {
        let prepare = || -> io::Result<UnixDatagram> {
            channel.0.set_nonblocking(true)?;
            UnixDatagram::from_std(channel.0)
        };
        let shared = Arc::new(Shared {
            channel: prepare().map_err(Error::io("preparing the channel"))?,
            state: Mutex::new(State { exchange: Exchange::new(), dropped: Vec::new() }),
        });
        tokio::spawn(Arc::clone(&shared).read());
        let mut session = Self { shared, welcome: None };
        session.welcome = Some(session.call(&ask::hello(name)).await?);
        Ok(session)
    }

    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// Stops a listener soon and waits for nothing.
    pub fn stop_dropped(&self, id: ListenerId) {
        let mut state = self.shared.state();
        state.dropped.push(id);
        // What does not go now goes before the next request or with the next reply.
        state.flush(&self.shared.channel);
    }

    /// Waits for the end of the session.
    pub async fn over(&self) -> Error {
        std::future::poll_fn(|context| self.shared.state().exchange.poll_over(context.waker())).await
    }

    /// Asks the broker for what the followers want, where it was not asked yet.
    pub async fn follow(&self) -> Result<(), Error> {
        if let Some(wanted) = self.followers(|followers| followers.to_ask()) {
            self.call(&wanted).await?;
            self.followers(|followers| followers.asked(wanted));
        }
        Ok(())
    }

    /// Whether the broker offers an operation to this peer.
    pub fn may(&self, operation: &str) -> bool {
        let operations = self.welcome.as_ref().map(|welcome| &welcome.operations);
        operations.is_some_and(|operations| operations.iter().any(|name| name.as_str() == operation))
    }

    /// Does something with the followers of this session's events.
    pub fn followers<T>(&self, with: impl FnOnce(&mut Followers) -> T) -> T {
        with(&mut self.shared.state().exchange.followers)
    }

    /// Ends a follower, and the subscription with the last one.
    pub fn unfollow(&self, id: FollowerId) {
        let mut state = self.shared.state();
        state.exchange.followers.remove(id);
        if state.exchange.followers.wanted().follow {
            return;
        }
        if let Some(none) = state.exchange.followers.to_ask() {
            // Where the channel is full or closed events go on to come, and nobody hears them.
            let _ = state.exchange.tell(self.shared.channel.as_fd(), &none);
            state.exchange.followers.asked(none);
        }
    }

    /// Waits for the next event of a follower.
    pub async fn event(&self, id: FollowerId) -> Result<Event, Error> {
        std::future::poll_fn(|context| self.shared.state().exchange.poll_event(id, context.waker())).await
    }

    /// Sends a request and waits for its reply.
    pub async fn call<O: Request>(&self, request: &O) -> Result<O::Output, Error> {
        let shared = &*self.shared;
        let send = || shared.state().send(&shared.channel, request);
        let sent = shared.channel.async_io(Interest::WRITABLE, send).await;
        let id = sent.map_err(Error::io("waiting to send a request"))??;
        let asked = Asked { shared, id };
        std::future::poll_fn(|context| shared.state().exchange.poll_reply::<O>(asked.id, context.waker()))
            .await
    }
}
