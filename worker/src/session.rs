//! A session of the asynchronous client: one task reads and sorts, callers send and wait for their own.
//!
//! It promises that a caller which is not polled holds nobody up, and that dropping the session ends it.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use portreeve_protocol::message::{Listen, ListenMany, Welcome};
use portreeve_protocol::{Event, Fault};
use tokio::net::UnixDatagram;
use tokio::task::AbortHandle;

use crate::ask::{self, Numbered};
use crate::channel::Channel;
use crate::error::Error;
use crate::followers::{FollowerId, Followers};
use crate::guard::Number;
use crate::lasting::{self, Again};
use crate::request::Request;
use crate::state::{Shared, Standing};

/// One session; it is over when this is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.close();
        self.keeper.abort();
    }
}

impl Session {
    /// Starts the reader and says hello.
    pub async fn open(channel: Channel, name: &str) -> Result<Self, Error> {
        let again = channel.again.map(|path| Again { path, name: name.to_owned() });
        let socket = channel.socket;
        let prepared = socket.set_nonblocking(true).and_then(|()| UnixDatagram::from_std(socket));
        let shared = Arc::new(Shared::new(prepared.map_err(Error::io("preparing the channel"))?, again));
        let (channel, _) = shared.current().await;
        let reader = tokio::spawn(shared.clone().read(channel.clone()));
        let keeper = tokio::spawn(lasting::keep(shared.clone(), reader)).abort_handle();
        let session = Self { shared, keeper };
        match session.shared.ask(&channel, &ask::hello(name)).await {
            Ok(welcome) => session.shared.state().welcome = Some(Arc::new(welcome)),
            // It is said to the next broker.
            Err(why) if session.lasts(&why) => {}
            Err(why) => return Err(why),
        }
        Ok(session)
    }

    pub fn welcome(&self) -> Option<Arc<Welcome>> {
        self.shared.state().welcome.clone()
    }

    /// Whether the session goes on after this error of a request.
    pub fn lasts(&self, error: &Error) -> bool {
        self.shared.lasts(error)
    }

    /// Ends what a guard held, soon, and waits for nothing.
    pub fn stop_dropped(&self, number: &Number) {
        let standing = *self.shared.standing.borrow();
        self.shared.state().stop_dropped(number, standing);
    }

    /// Ends what a guard holds, and waits until it is out of service.
    pub async fn stop(&self, number: &Number) -> Result<(), Error> {
        loop {
            // By the number that the broker of this very channel gave it.
            let (channel, generation) = self.shared.current().await;
            let Some(id) = number.id() else { break };
            match self.shared.ask(&channel, &ask::stop(&[id])?).await {
                Ok(_) => break,
                Err(why) if self.lasts(&why) => self.shared.ended(generation).await,
                Err(why) => return Err(why),
            }
        }
        self.shared.state().holdings.remove(&number.key());
        Ok(())
    }

    /// Waits for the end of the session.
    pub async fn over(&self) -> Error {
        let mut standing = self.shared.standing.subscribe();
        // The sender is here.
        let _ = standing.wait_for(|standing| *standing == Standing::Over).await;
        self.shared.state().exchange.over.clone().unwrap_or(Error::Closed)
    }

    /// Waits until the broker does not keep a listener any more.
    pub async fn lost(&self, number: &Number) -> Error {
        let mut standing = self.shared.standing.subscribe();
        loop {
            let over = *standing.borrow_and_update() == Standing::Over;
            if let Some(why) = number.lost() {
                return why;
            }
            if over || standing.changed().await.is_err() {
                return self.over().await;
            }
        }
    }

    /// How many brokers this session had before the one that it has, or will have.
    pub fn generation(&self) -> u64 {
        self.shared.state().generation
    }

    /// Waits until the session is with another broker than when it had this generation.
    pub async fn renewed(&self, generation: u64) {
        self.shared.ended(generation).await;
        let _ = self.shared.current().await;
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
        let welcome = self.welcome();
        welcome.is_some_and(|welcome| welcome.operations.iter().any(|name| name.as_str() == operation))
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
            let channel = state.channel.clone();
            // Where the channel is full or closed events go on to come, and nobody hears them.
            let _ = state.exchange.tell(channel.as_fd(), &none);
            state.exchange.followers.asked(none);
        }
    }

    /// Waits for the next event of a follower.
    pub async fn event(&self, id: FollowerId) -> Result<Event, Error> {
        let next = |context: &mut std::task::Context<'_>| {
            let next = self.shared.state().exchange.poll_event(id, context.waker());
            match next {
                // It is woken by the next broker.
                std::task::Poll::Ready(Err(why)) if self.lasts(&why) => std::task::Poll::Pending,
                next => next,
            }
        };
        std::future::poll_fn(next).await
    }

    /// Sends a request and waits for its reply.
    pub async fn call<O: Request>(&self, request: &O) -> Result<O::Output, Error> {
        self.call_noting(request).await.map(|(reply, _)| reply)
    }

    /// The same, with the generation of the session that it was answered in.
    pub async fn call_noting<O: Request>(&self, request: &O) -> Result<(O::Output, u64), Error> {
        let shared = &*self.shared;
        loop {
            let (channel, generation) = shared.current().await;
            let why = match shared.ask(&channel, request).await {
                Ok(reply) => return Ok((reply, generation)),
                Err(why) => why,
            };
            // What may have been done already is not asked for again, unless that makes no difference.
            if !O::REPEATABLE || !shared.lasts(&why) {
                return Err(why);
            }
            shared.ended(generation).await;
        }
    }

    /// Asks for a listener, which a guard will hold.
    pub async fn listen(&self, listen: &Listen) -> Result<Numbered, Error> {
        loop {
            let ((id, socket), generation) = self.call_noting(listen).await?;
            let handed = (Number::new(id), socket);
            if self.shared.hold(generation, std::iter::once((listen, &handed))) {
                return Ok(handed);
            }
        }
    }

    /// Asks for many.
    pub async fn listen_many(&self, request: &ListenMany) -> Result<Vec<Result<Numbered, Fault>>, Error> {
        loop {
            let (results, generation) = self.call_noting(request).await?;
            let numbered = ask::numbered(results);
            let pairs = request.listeners.iter().zip(&numbered);
            let handed = pairs.filter_map(|(listen, result)| Some((listen, result.as_ref().ok()?)));
            if self.shared.hold(generation, handed) {
                return Ok(numbered);
            }
        }
    }
}
