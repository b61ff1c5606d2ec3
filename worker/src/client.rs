//! The asynchronous client, for tokio.
//!
//! One task per session reads; callers only send and wait, so a caller that is not polled holds nobody up.
//! Requests may be sent while others wait, and each gets its own reply. Dropping the last handle and guard
//! ends the session.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use portreeve_protocol::message::{
    Listen, ListenOptions, ListenerId, Ping, StatusRequest, Stop, Stopped, Welcome,
};
use portreeve_protocol::status::Status;
use portreeve_protocol::{Endpoint, Fault, List};
use tokio::io::Interest;
use tokio::net::{TcpListener, UdpSocket, UnixDatagram, UnixListener};

use crate::ask;
use crate::channel::Channel;
use crate::error::Error;
use crate::exchange::{Exchange, RequestId};
use crate::guard::{Guard, Stopper};
use crate::request::Request;

/// A listener of the asynchronous client. See [`Guard`].
pub type Listener<S = OwnedFd> = Guard<S, Client>;

/// A session with the broker. Clones share it.
#[derive(Clone, Debug)]
pub struct Client(Arc<Session>);

#[derive(Debug)]
struct Session {
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
        out.debug_struct("Shared")
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Sends the stops of dropped guards; `false` where the channel is full and some are left.
    fn flush(&mut self, channel: &UnixDatagram) -> bool {
        while !self.dropped.is_empty() {
            let stop = Stop {
                listeners: List::first_of(self.dropped.iter().copied()),
            };
            match self.exchange.send(channel.as_fd(), &stop) {
                Ok(Some(id)) => {
                    self.exchange.forget(id);
                    self.dropped.drain(..stop.listeners.len());
                }
                Ok(None) => return false,
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

    /// Receives what is there, or as much of it as somebody waits for.
    fn receive(&mut self, channel: &UnixDatagram) -> io::Result<Result<(), Error>> {
        loop {
            match self.exchange.receive(channel.as_fd()) {
                Ok(true) if self.exchange.expects_replies() => {}
                Ok(true) => return Ok(Ok(())),
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
        while let Ok(Ok(())) = self.channel.async_io(Interest::READABLE, receive).await {
            // Whoever was answered goes first: its next request is worth more than finding the channel empty.
            let mut yielded = false;
            std::future::poll_fn(|context| {
                if std::mem::replace(&mut yielded, true) {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        }
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

impl Client {
    /// Opens a session on a channel. `name` is how this program calls itself in the broker's logs.
    ///
    /// # Errors
    /// What the broker said, or why it could not be asked. It must be called within a tokio runtime that has
    /// its I/O enabled.
    pub async fn open(channel: Channel, name: &str) -> Result<Self, Error> {
        let fail = Error::io;
        channel
            .0
            .set_nonblocking(true)
            .map_err(fail("preparing the channel"))?;
        let shared = Arc::new(Shared {
            channel: UnixDatagram::from_std(channel.0).map_err(fail("registering the channel"))?,
            state: Mutex::new(State {
                exchange: Exchange::new(),
                dropped: Vec::new(),
            }),
        });
        tokio::spawn(Arc::clone(&shared).read());
        let mut session = Session {
            shared,
            welcome: None,
        };
        session.welcome = Some(session.call(&ask::hello(name)).await?);
        Ok(Self(Arc::new(session)))
    }

    /// What the broker said when the session began: who it is and what this peer may ask for.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.0.welcome.as_ref()
    }

    /// Asks for a listener. Asking again for the same endpoint gives the same socket.
    ///
    /// A call that is cancelled may still have been served; its listener then belongs to the session until
    /// it is asked for again and stopped, or the session ends.
    ///
    /// # Errors
    /// [`Error::Fault`] with the broker's reason; [`Error::DescriptorsLost`], after which asking again helps.
    pub async fn listen(&self, endpoint: &Endpoint, options: &ListenOptions) -> Result<Listener, Error> {
        let handed = self.0.call(&ask::listen(endpoint, options)).await?;
        Ok(Guard::new(self.clone(), endpoint.clone(), handed))
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
        let results = self.0.call(&ask::listen_many(listeners, all_or_nothing)?).await?;
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

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// As for every request.
    pub async fn ping(&self) -> Result<(), Error> {
        self.0.call(&Ping {}).await.map(drop)
    }

    /// Waits until the session is over and says why. Sockets that were handed over go on serving.
    pub async fn closed(&self) -> Error {
        std::future::poll_fn(|context| self.0.shared.state().exchange.poll_over(context.waker())).await
    }
}

impl Session {
    async fn call<O: Request>(&self, request: &O) -> Result<O::Output, Error> {
        let shared = &*self.shared;
        let send = || shared.state().send(&shared.channel, request);
        let sent = shared.channel.async_io(Interest::WRITABLE, send).await;
        let id = sent.map_err(Error::io("waiting to send a request"))??;
        let asked = Asked { shared, id };
        std::future::poll_fn(|context| shared.state().exchange.poll_reply::<O>(asked.id, context.waker()))
            .await
    }
}

impl Stopper for Client {
    fn stop_dropped(&self, id: ListenerId) {
        let mut state = self.0.shared.state();
        state.dropped.push(id);
        // What does not go now goes before the next request or with the next reply.
        state.flush(&self.0.shared.channel);
    }
}

impl<S> Listener<S> {
    /// Stops the listener and waits until it is out of service.
    ///
    /// # Errors
    /// As for every request. A listener that was stopped before is no error.
    pub async fn stop(self) -> Result<(), Error> {
        if let Some(client) = self.client() {
            client.stop(&[self.id()]).await?;
        }
        self.stopped();
        Ok(())
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
