//! The asynchronous client, for tokio.
//!
//! Requests may be sent while others wait, and each gets its own reply. Dropping the last handle and guard
//! ends the session.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use portreeve_protocol::limit::{CurrentLimit, SetLimit};
use portreeve_protocol::message::{Listen, ListenOptions, ListenerId, Ping, StatusRequest, Stopped, Welcome};
use portreeve_protocol::metrics::{Metrics, MetricsRequest};
use portreeve_protocol::policy::{PolicyPage, PolicyRequest};
use portreeve_protocol::reload::{Reload, Reloaded};
use portreeve_protocol::status::Status;
use portreeve_protocol::{Endpoint, Fault};
use tokio::net::{TcpListener, UdpSocket, UnixListener};

use crate::ask;
use crate::channel::Channel;
use crate::error::Error;
use crate::guard::{Guard, Number, Stopper};
use crate::request::Request;
use crate::session::Session;

/// A listener of the asynchronous client. See [`Guard`].
pub type Listener<S = OwnedFd> = Guard<S, Client>;

/// A session with the broker. Clones share it.
#[derive(Clone, Debug)]
pub struct Client(Arc<Session>);

impl Client {
    /// Opens a session on a channel. `name` is how this program calls itself in the broker's logs.
    ///
    /// # Errors
    /// What the broker said, or why it could not be asked. It must be called within a tokio runtime that has
    /// its I/O enabled.
    pub async fn open(channel: Channel, name: &str) -> Result<Self, Error> {
        Ok(Self(Arc::new(Session::open(channel, name).await?)))
    }

    /// What the broker that there is said when the session began: who it is and what this peer may ask for.
    pub fn welcome(&self) -> Option<Arc<Welcome>> {
        self.0.welcome()
    }

    /// Asks for a listener. Asking again for the same endpoint gives the same socket.
    ///
    /// A call that is cancelled may still have been served; its listener then belongs to the session until
    /// it is asked for again and stopped, or the session ends.
    ///
    /// # Errors
    /// [`Error::Fault`] with the broker's reason; [`Error::DescriptorsLost`], after which asking again helps.
    pub async fn listen(&self, endpoint: &Endpoint, options: &ListenOptions) -> Result<Listener, Error> {
        let (number, socket) = self.0.listen(&ask::listen(endpoint, options)).await?;
        Ok(Guard::new(self.clone(), endpoint.clone(), number, socket))
    }

    /// Asks for many listeners at once, at most 253. The results are in the order of the request.
    ///
    /// # Errors
    /// As [`Client::listen`] for all of them; what failed for one is that one's result. With
    /// `all_or_nothing`, where one fails all do.
    pub async fn listen_many(
        &self,
        listeners: &[Listen],
        all_or_nothing: bool,
    ) -> Result<Vec<Result<Listener, Fault>>, Error> {
        let results = self.0.listen_many(&ask::listen_many(listeners, all_or_nothing)?).await?;
        ask::guards(self, listeners, results)
    }

    /// Takes listeners out of service by number, at most 253, and says which were none of this peer's.
    ///
    /// # Errors
    /// As for every request.
    pub async fn stop(&self, listeners: &[ListenerId]) -> Result<Stopped, Error> {
        self.0.call(&ask::stop(listeners)?).await
    }

    /// The broker's state, with the page of listeners that begins after the number `after`; 0 for the first.
    ///
    /// # Errors
    /// As for every request.
    pub async fn status(&self, after: u64) -> Result<Status, Error> {
        self.0.call(&StatusRequest { after }).await
    }

    /// What the broker has counted and measured.
    ///
    /// # Errors
    /// As for every request.
    pub async fn metrics(&self) -> Result<Metrics, Error> {
        self.0.call(&MetricsRequest {}).await
    }

    /// What this peer may ask for and the addresses that move between hosts, with the page of each that begins after so
    /// many rows; 0 for the first.
    ///
    /// # Errors
    /// As for every request.
    pub async fn policy(&self, after: u32) -> Result<PolicyPage, Error> {
        self.0.call(&PolicyRequest { after }).await
    }

    /// Sets a resource limit of this process, named as getrlimit(2) does, `nofile`, and gives the one in force; what is
    /// `None` stays. [`UNLIMITED`](crate::limit::UNLIMITED) is none.
    ///
    /// # Errors
    /// As for every request.
    pub async fn set_limit(
        &self,
        resource: &str,
        soft: Option<u64>,
        hard: Option<u64>,
    ) -> Result<CurrentLimit, Error> {
        self.0.call(&SetLimit { resource: ask::text(resource)?, soft, hard }).await
    }

    /// Has the broker read its configuration again, and tells what that changed; with `last` nothing is read, and it
    /// tells of the last time.
    ///
    /// # Errors
    /// [`Error::Fault`] with the first mistake of a configuration that is refused: the old one stays in force.
    pub async fn reload(&self, last: bool) -> Result<Reloaded, Error> {
        self.0.call(&Reload { last }).await
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// As for every request.
    pub async fn ping(&self) -> Result<(), Error> {
        self.0.call(&Ping {}).await.map(drop)
    }

    pub(crate) fn session(&self) -> &Session {
        &self.0
    }

    pub(crate) async fn call<O: Request>(&self, request: &O) -> Result<O::Output, Error> {
        self.0.call(request).await
    }

    /// Waits until the session is over and says why. Sockets that were handed over go on serving.
    pub async fn closed(&self) -> Error {
        self.0.over().await
    }
}

impl Stopper for Client {
    fn stop_dropped(&self, number: &Number) {
        self.0.stop_dropped(number);
    }
}

impl<S> Listener<S> {
    /// Stops the listener and waits until it is out of service.
    ///
    /// # Errors
    /// As for every request. A listener that was stopped before is no error.
    pub async fn stop(self) -> Result<(), Error> {
        if let Some(client) = self.client() {
            client.session().stop(self.number()).await?;
        }
        self.stopped();
        Ok(())
    }
}

impl<S> Listener<S> {
    /// Waits until the broker does not keep this listener any more, and says why: the session is over, or the broker that it
    /// was opened to anew refuses the listener, or the one before took it out of service. In the first case the socket may
    /// serve on; whoever asks for the endpoint again has one that does.
    ///
    /// A listener whose broker was killed, and that no other has, is not lost: it serves on the guard's own socket.
    pub async fn lost(&self) -> Error {
        match self.client() {
            Some(client) => client.session().lost(self.number()).await,
            None => Error::Closed,
        }
    }
}

impl Listener {
    /// The socket as tokio's TCP listener.
    ///
    /// # Errors
    /// [`Error::WrongKind`] where it is another kind of socket; the listener stops then.
    pub fn into_tcp(self) -> Result<Listener<TcpListener>, Error> {
        self.convert(
            "a TCP listener",
            |endpoint| matches!(endpoint, Endpoint::Tcp(_)),
            |socket| {
                let socket = std::net::TcpListener::from(socket);
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket)
            },
        )
    }

    /// The socket as tokio's UDP socket.
    ///
    /// # Errors
    /// [`Error::WrongKind`] where it is another kind of socket; the listener stops then.
    pub fn into_udp(self) -> Result<Listener<UdpSocket>, Error> {
        self.convert(
            "a UDP socket",
            |endpoint| matches!(endpoint, Endpoint::Udp(_)),
            |socket| {
                let socket = std::net::UdpSocket::from(socket);
                socket.set_nonblocking(true)?;
                UdpSocket::from_std(socket)
            },
        )
    }

    /// The socket as tokio's listener for Unix streams.
    ///
    /// # Errors
    /// [`Error::WrongKind`] where it is another kind of socket; the listener stops then.
    pub fn into_unix(self) -> Result<Listener<UnixListener>, Error> {
        self.convert(
            "a Unix stream listener",
            |endpoint| matches!(endpoint, Endpoint::UnixStream(_)),
            |socket| {
                let socket = std::os::unix::net::UnixListener::from(socket);
                socket.set_nonblocking(true)?;
                UnixListener::from_std(socket)
            },
        )
    }
}
