//! What the parts of an asynchronous session share: the channel that it has now, the exchange over it, and what its guards
//! hold.
//!
//! Promises: stops of dropped guards go before any later request; what was sent on one channel is never taken for
//! something on another.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use portreeve_protocol::message::{Listen, ListenerId, Stop, Welcome};
use portreeve_protocol::{FaultCode, List};
use rustix::net::sockopt::socket_cookie;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::watch;

use crate::error::Error;
use crate::exchange::{Exchange, RequestId};
use crate::guard::Number;
use crate::lasting::Again;
use crate::request::Request;

/// How a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Requests are answered.
    Up,
    /// There is no broker, and one is looked for.
    Down,
    /// For good.
    Over,
}

/// A listener that a guard of a session that lasts holds.
#[derive(Clone)]
pub(crate) struct Holding {
    pub number: Number,
    pub listen: Listen,
    /// Which socket it is, as the kernel numbers them. See SO_COOKIE in socket(7).
    pub cookie: Option<u64>,
}

pub(crate) struct State {
    pub channel: Arc<UnixDatagram>,
    pub exchange: Exchange,
    pub welcome: Option<Arc<Welcome>>,
    /// How many channels there were before this one.
    pub generation: u64,
    /// By [`Number::key`].
    pub holdings: HashMap<usize, Holding>,
    /// The program has let go of the session.
    pub closed: bool,
    /// Listeners whose guards were dropped and whose stop is not sent yet. It goes before any later request,
    /// so a new request for the same endpoint does not get what is about to be stopped.
    dropped: Vec<ListenerId>,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    pub standing: watch::Sender<Standing>,
    pub again: Option<Again>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Shared").field("standing", &self.standing).finish_non_exhaustive()
    }
}

/// Which socket this is.
pub(crate) fn cookie(socket: &OwnedFd) -> Option<u64> {
    socket_cookie(socket).ok()
}

impl State {
    /// Sends the stops of dropped guards; `false` where the channel is full and some are left.
    fn flush(&mut self) -> bool {
        while !self.dropped.is_empty() {
            let stop = Stop { listeners: List::truncated(self.dropped.iter().copied()) };
            match self.exchange.tell(self.channel.as_fd(), &stop) {
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
        if !self.flush() {
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
                    self.flush();
                    return Err(ErrorKind::WouldBlock.into());
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// No broker keeps anything of this session any more, as far as it knows.
    pub fn let_go(&mut self) {
        self.generation += 1;
        self.dropped.clear();
        self.holdings.values().for_each(|holding| holding.number.set(None));
    }

    /// Stops a listener soon and waits for nothing.
    pub fn stop_soon(&mut self, id: ListenerId) {
        self.dropped.push(id);
        // What does not go now goes before the next request or with the next reply.
        self.flush();
    }

    /// Ends what a guard held. While there is no broker it is remembered, for the next one may have kept it.
    pub fn stop_dropped(&mut self, number: &Number, standing: Standing) {
        number.drop_guard();
        match number.id() {
            Some(id) => self.stop_soon(id),
            None if standing == Standing::Down => return,
            None => {}
        }
        self.holdings.remove(&number.key());
    }
}

type Sent = Result<RequestId, Error>;

impl Shared {
    pub fn new(channel: UnixDatagram, again: Option<Again>) -> Self {
        let state = State {
            channel: Arc::new(channel),
            exchange: Exchange::new(),
            welcome: None,
            generation: 0,
            holdings: HashMap::new(),
            closed: false,
            dropped: Vec::new(),
        };
        Self { state: Mutex::new(state), standing: watch::Sender::new(Standing::Up), again }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the session goes on after an error that ends the channel.
    pub fn lasts(&self, error: &Error) -> bool {
        let passes = match error {
            Error::Closed | Error::Io { .. } => true,
            Error::Ended(fault) => fault.code == FaultCode::Busy,
            _ => false,
        };
        passes && self.again.is_some()
    }

    /// Receives until the channel is at its end, and says why it is.
    pub async fn read(self: Arc<Self>, channel: Arc<UnixDatagram>) -> Error {
        let receive = || {
            let mut state = self.state();
            let received = state.receive(&channel);
            if let Ok(Err(error)) = &received
                && self.lasts(error)
            {
                state.let_go();
                self.standing.send_replace(Standing::Down);
            }
            received
        };
        match channel.async_io(Interest::READABLE, receive).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => Error::Closed,
            Err(error) => Error::io("waiting for the broker")(error),
        }
    }

    /// The channel to ask on, once there is one.
    pub async fn current(&self) -> (Arc<UnixDatagram>, u64) {
        if *self.standing.borrow() == Standing::Down {
            let mut standing = self.standing.subscribe();
            // The sender is here.
            let _ = standing.wait_for(|standing| *standing != Standing::Down).await;
        }
        let state = self.state();
        (state.channel.clone(), state.generation)
    }

    /// Waits until it is known that a channel is at its end.
    pub async fn ended(&self, generation: u64) {
        let mut standing = self.standing.subscribe();
        loop {
            let over = *standing.borrow_and_update() == Standing::Over;
            if over || self.state().generation != generation || standing.changed().await.is_err() {
                return;
            }
        }
    }

    /// Sends a request, and gives its number.
    pub async fn send<O: Request>(&self, channel: &UnixDatagram, request: &O) -> Sent {
        let send = || self.state().send(channel, request);
        channel.async_io(Interest::WRITABLE, send).await.map_err(Error::io("waiting to send a request"))?
    }

    /// Waits for the reply to a request that was sent.
    pub async fn reply<O: Request>(&self, id: RequestId) -> Result<O::Output, Error> {
        let asked = Asked { shared: self, id };
        std::future::poll_fn(|context| self.state().exchange.poll_reply::<O>(asked.id, context.waker())).await
    }

    /// Sends a request on this channel and waits for its reply.
    pub async fn ask<O: Request>(&self, channel: &UnixDatagram, request: &O) -> Result<O::Output, Error> {
        self.reply::<O>(self.send(channel, request).await?).await
    }

    /// Notes what guards will hold; `false` where the channel that it came by is at its end already.
    pub fn hold<'h>(
        &self,
        generation: u64,
        handed: impl Iterator<Item = (&'h Listen, &'h (Number, OwnedFd))>,
    ) -> bool {
        let mut state = self.state();
        if self.again.is_some() && state.generation == generation {
            state.holdings.extend(handed.map(|(listen, (number, socket))| {
                let (listen, cookie) = (listen.clone(), cookie(socket));
                (number.key(), Holding { number: number.clone(), listen, cookie })
            }));
        }
        state.generation == generation
    }

    /// Ends the channel for both sides.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        // The reader sees the end too. Where the other side is gone already there is nobody to tell.
        let _ = state.channel.shutdown(Shutdown::Both);
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
