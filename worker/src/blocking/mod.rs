//! The blocking client, for programs without a runtime: one request at a time, whatever thread asks.
//!
//! Use [`Client::listen_many`] where many listeners are wanted: it costs one round trip.

mod addresses;
mod events;

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use portreeve_protocol::limit::{CurrentLimit, SetLimit};
use portreeve_protocol::message::{
    Listen, ListenOptions, ListenerId, Ping, StatusRequest, Stop, Stopped, Welcome,
};
use portreeve_protocol::metrics::{Metrics, MetricsRequest};
use portreeve_protocol::policy::{PolicyPage, PolicyRequest};
use portreeve_protocol::reload::{Reload, Reloaded};
use portreeve_protocol::status::Status;
use portreeve_protocol::{Endpoint, Fault, List};

pub use events::Events;

use crate::ask;
use crate::channel::Channel;
use crate::error::Error;
use crate::exchange::Exchange;
use crate::guard::{Guard, Number, Stopper};
use crate::request::Request;

/// A listener of the blocking client. See [`Guard`].
pub type Listener<S = OwnedFd> = Guard<S, Client>;

/// A session with the broker. Clones share it.
#[derive(Clone)]
pub struct Client(Arc<Session>);

struct Session {
    channel: UnixDatagram,
    /// Held for a whole request, so that replies need no sorting between threads.
    exchange: Mutex<Exchange>,
    welcome: Option<Welcome>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Client").field("channel", &self.0.channel).finish_non_exhaustive()
    }
}

impl Session {
    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<O: Request>(&self, request: &O) -> Result<O::Output, Error> {
        let mut exchange = self.exchange();
        let channel = self.channel.as_fd();
        let id = loop {
            // A blocking send is full only for the kernel's moment.
            if let Some(id) = exchange.send(channel, request)? {
                break id;
            }
            std::thread::yield_now();
        };
        loop {
            if let Poll::Ready(reply) = exchange.poll_reply::<O>(id, Waker::noop()) {
                return reply;
            }
            exchange.receive(channel)?;
        }
    }
}

impl Client {
    /// Opens a session on a channel. `name` is how this program calls itself in the broker's logs.
    ///
    /// # Errors
    /// What the broker said, or why it could not be asked.
    pub fn open(channel: Channel, name: &str) -> Result<Self, Error> {
        channel.socket.set_nonblocking(false).map_err(Error::io("preparing the channel"))?;
        let mut session =
            Session { channel: channel.socket, exchange: Mutex::new(Exchange::new()), welcome: None };
        session.welcome = Some(session.call(&ask::hello(name))?);
        Ok(Self(Arc::new(session)))
    }

    /// What the broker said when the session began: who it is and what this peer may ask for.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.0.welcome.as_ref()
    }

    /// Asks for a listener. Asking again for the same endpoint gives the same socket.
    ///
    /// # Errors
    /// [`Error::Fault`] with the broker's reason; [`Error::DescriptorsLost`], after which asking again helps.
    pub fn listen(&self, endpoint: &Endpoint, options: &ListenOptions) -> Result<Listener, Error> {
        let handed = self.0.call(&ask::listen(endpoint, options))?;
        Ok(Guard::new(self.clone(), endpoint.clone(), Number::new(handed.0), handed.1))
    }

    /// Asks for many listeners at once, at most 253. The results are in the order of the request.
    ///
    /// # Errors
    /// As [`Client::listen`] for all of them; what failed for one is that one's result. With
    /// `all_or_nothing`, where one fails all do.
    pub fn listen_many(
        &self,
        listeners: &[Listen],
        all_or_nothing: bool,
    ) -> Result<Vec<Result<Listener, Fault>>, Error> {
        let results = self.0.call(&ask::listen_many(listeners, all_or_nothing)?)?;
        ask::guards(self, listeners, ask::numbered(results))
    }

    /// Takes listeners out of service by number, at most 253, and says which were none of this peer's.
    ///
    /// # Errors
    /// As for every request.
    pub fn stop(&self, listeners: &[ListenerId]) -> Result<Stopped, Error> {
        self.0.call(&ask::stop(listeners)?)
    }

    /// The broker's state, with the page of listeners that begins after the number `after`; 0 for the first.
    ///
    /// # Errors
    /// As for every request.
    pub fn status(&self, after: u64) -> Result<Status, Error> {
        self.0.call(&StatusRequest { after })
    }

    /// What the broker has counted and measured.
    ///
    /// # Errors
    /// As for every request.
    pub fn metrics(&self) -> Result<Metrics, Error> {
        self.0.call(&MetricsRequest {})
    }

    /// What this peer may ask for and the addresses that move between hosts, with the page of each that begins after so
    /// many rows; 0 for the first.
    ///
    /// # Errors
    /// As for every request.
    pub fn policy(&self, after: u32) -> Result<PolicyPage, Error> {
        self.0.call(&PolicyRequest { after })
    }

    /// Sets a resource limit of this process, named as getrlimit(2) does, `nofile`, and gives the one in force; what is
    /// `None` stays. [`UNLIMITED`](crate::limit::UNLIMITED) is none.
    ///
    /// # Errors
    /// As for every request.
    pub fn set_limit(
        &self,
        resource: &str,
        soft: Option<u64>,
        hard: Option<u64>,
    ) -> Result<CurrentLimit, Error> {
        self.0.call(&SetLimit { resource: ask::text(resource)?, soft, hard })
    }

    /// Has the broker read its configuration again, and tells what that changed; with `last` nothing is read, and it
    /// tells of the last time.
    ///
    /// # Errors
    /// [`Error::Fault`] with the first mistake of a configuration that is refused: the old one stays in force.
    pub fn reload(&self, last: bool) -> Result<Reloaded, Error> {
        self.0.call(&Reload { last })
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// As for every request.
    pub fn ping(&self) -> Result<(), Error> {
        self.0.call(&Ping {}).map(drop)
    }
}

impl Stopper for Client {
    fn stop_dropped(&self, number: &Number) {
        let listeners = List::truncated(number.id());
        let mut exchange = self.0.exchange();
        // Where the session is over its listeners are too.
        let _ = exchange.tell(self.0.channel.as_fd(), &Stop { listeners });
    }
}

impl<S> Listener<S> {
    /// Stops the listener and waits until it is out of service.
    ///
    /// # Errors
    /// As for every request. A listener that was stopped before is no error.
    pub fn stop(self) -> Result<(), Error> {
        let result = self.client().map_or(Ok(()), |client| client.stop(&[self.id()]).map(drop));
        self.stopped();
        result
    }
}

impl Listener {
    /// The socket as a TCP listener that blocks.
    ///
    /// # Errors
    /// [`Error::WrongKind`] where it is another kind of socket; the listener stops then.
    pub fn into_tcp(self) -> Result<Listener<TcpListener>, Error> {
        self.convert(
            "a TCP listener",
            |endpoint| matches!(endpoint, Endpoint::Tcp(_)),
            |socket| {
                let socket = TcpListener::from(socket);
                socket.set_nonblocking(false).map(|()| socket)
            },
        )
    }

    /// The socket as a UDP socket that blocks.
    ///
    /// # Errors
    /// [`Error::WrongKind`] where it is another kind of socket; the listener stops then.
    pub fn into_udp(self) -> Result<Listener<UdpSocket>, Error> {
        self.convert(
            "a UDP socket",
            |endpoint| matches!(endpoint, Endpoint::Udp(_)),
            |socket| {
                let socket = UdpSocket::from(socket);
                socket.set_nonblocking(false).map(|()| socket)
            },
        )
    }

    /// The socket as a listener for Unix streams that blocks.
    ///
    /// # Errors
    /// [`Error::WrongKind`] where it is another kind of socket; the listener stops then.
    pub fn into_unix(self) -> Result<Listener<UnixListener>, Error> {
        self.convert(
            "a Unix stream listener",
            |endpoint| matches!(endpoint, Endpoint::UnixStream(_)),
            |socket| {
                let socket = UnixListener::from(socket);
                socket.set_nonblocking(false).map(|()| socket)
            },
        )
    }
}
