//! The blocking client, for programs without a runtime: one request at a time, from any thread.
//!
//! Use [`Client::listen_many`] for many listeners: it takes one round trip.

mod addresses;
mod events;
mod reconnect;
mod session;

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use portreeve_protocol::cluster::{ClusterRequest, ClusterSettings};
use portreeve_protocol::limit::{CurrentLimit, SetLimit};
use portreeve_protocol::message::{ListenerId, Ping, StatusRequest, Stopped, Welcome};
use portreeve_protocol::metrics::{Metrics, MetricsRequest};
use portreeve_protocol::policy::{PolicyPage, PolicyRequest};
use portreeve_protocol::reload::{Reload, Reloaded};
use portreeve_protocol::status::Status;
use portreeve_protocol::worker::{RestartWorker, SignalWorker, WorkerRequest, WorkerStatus};
use portreeve_protocol::{Endpoint, Fault, Trailing};

pub use events::Events;

use session::Session;

use crate::build;
use crate::channel::Channel;
use crate::error::Error;
use crate::listen_options::{Listen, ListenOptions};
use crate::listener::{ListenerClient, ListenerGuard, Registration, sealed};
use crate::restore::HeldListener;

/// A listener of the blocking client. See [`ListenerGuard`].
pub type Listener<S = OwnedFd> = ListenerGuard<S, Client>;

/// A session with the broker. Clones share it.
#[derive(Clone)]
pub struct Client(Arc<Session>);

impl std::fmt::Debug for Client {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Client").field("channel", &self.0.state().channel).finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a session on a channel. `name` identifies this program in the broker's logs.
    ///
    /// # Errors
    /// [`Error::Ended`] with the broker's reason, or another error if no session can be opened.
    pub fn open(channel: Channel, name: &str) -> Result<Self, Error> {
        Session::open(channel, name).map(Self)
    }

    /// The present broker's reply to the opening of the session: its identity, and the operations that this peer is allowed.
    /// `None` before the first broker has replied.
    pub fn welcome(&self) -> Option<Arc<Welcome>> {
        self.0.state().welcome.clone()
    }

    /// Requests a listener. A repeated request for the same endpoint returns the same socket.
    ///
    /// # Errors
    /// [`Error::Fault`] with the broker's reason; [`Error::DescriptorsLost`], after which the request can be repeated.
    pub fn listen(&self, endpoint: &Endpoint, options: &ListenOptions) -> Result<Listener, Error> {
        let listen = build::listen(endpoint, options, self.welcome().as_deref())?;
        let registered = self.0.call_and(&listen, |state, (id, socket)| {
            let registered = (Registration::new(id), socket);
            if self.0.reconnect.is_some() {
                state.held.extend([HeldListener::new(&listen, &registered)]);
            }
            registered
        })?;
        ListenerGuard::new(self.clone(), (endpoint.clone(), options.backlog), registered)
    }

    /// Requests a batch of listeners, at most 253. The results are in the order of the request.
    ///
    /// # Errors
    /// As [`Client::listen`] if the request as a whole fails; a [`Fault`] in the results for each listener that fails. With
    /// `all_or_nothing`, one failure makes all of them fail.
    pub fn listen_many(
        &self,
        listeners: &[Listen],
        all_or_nothing: bool,
    ) -> Result<Vec<Result<Listener, Fault>>, Error> {
        let request = build::listen_many(listeners, all_or_nothing, self.welcome().as_deref())?;
        let registered = self.0.call_and(&request, |state, results| {
            let registered = build::register(results);
            if self.0.reconnect.is_some() {
                let pairs = request.requests().zip(&registered);
                let held = pairs
                    .filter_map(|(listen, result)| Some(HeldListener::new(&listen, result.as_ref().ok()?)));
                state.held.extend(held);
            }
            registered
        })?;
        build::guards(self, listeners, registered)
    }

    /// Stops listeners by number, at most 253, and returns the numbers that are not listeners of this peer.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub fn stop(&self, listeners: &[ListenerId]) -> Result<Stopped, Error> {
        self.0.call(&build::stop(listeners)?)
    }

    /// Returns the broker's status, with the page of listeners that begins after the number `after`; 0 for the first page.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub fn status(&self, after: u64) -> Result<Status, Error> {
        self.0.call(&StatusRequest { after })
    }

    /// Returns the broker's metrics.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub fn metrics(&self) -> Result<Metrics, Error> {
        self.0.call(&MetricsRequest {})
    }

    /// Returns one page of the rules that apply to this peer, of the topology and of the floating addresses. `after` is the
    /// number of rows to skip, 0 for the first page.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub fn policy(&self, after: u32) -> Result<PolicyPage, Error> {
        self.0.call(&PolicyRequest { after })
    }

    /// Returns the settings of the cluster: what a coordinator on this host needs from the configuration.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub fn cluster_settings(&self) -> Result<ClusterSettings, Error> {
        self.0.call(&ClusterRequest {})
    }

    /// Returns the state of the broker's worker.
    ///
    /// # Errors
    /// As [`Client::ping`]; the fault `unsupported` if the configuration has no worker.
    pub fn worker(&self) -> Result<WorkerStatus, Error> {
        self.0.call(&WorkerRequest {})
    }

    /// Stops the broker's worker and starts it again; its listeners stay open meanwhile. Returns when the new one runs.
    ///
    /// # Errors
    /// As [`Client::worker`].
    pub fn restart_worker(&self) -> Result<WorkerStatus, Error> {
        self.0.call(&RestartWorker {})
    }

    /// Sends a signal to the broker's worker, by its number, and returns the worker's process id. See signal(7).
    ///
    /// # Errors
    /// As [`Client::worker`]; the fault `not-found` while no worker runs, `invalid` for a number that is no signal.
    pub fn signal_worker(&self, signal: u8) -> Result<u32, Error> {
        Ok(self.0.call(&SignalWorker { signal })?.pid)
    }

    /// Sets a resource limit of this process and returns the limit in force. The resource is named as in getrlimit(2), for
    /// example `nofile`. `None` changes nothing; [`UNLIMITED`](crate::limit::UNLIMITED) removes the limit.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub fn set_limit(
        &self,
        resource: &str,
        soft: Option<u64>,
        hard: Option<u64>,
    ) -> Result<CurrentLimit, Error> {
        self.0.call(&SetLimit { resource: build::text("the resource name", resource)?, soft, hard })
    }

    /// Makes the broker read its configuration again, and returns what changed. With `last` the broker reads nothing, and the
    /// result is that of the last reload.
    ///
    /// # Errors
    /// [`Error::Fault`] with the first mistake of an invalid configuration; the old one stays in force.
    pub fn reload(&self, last: bool) -> Result<Reloaded, Error> {
        self.0.call(&Reload { last, ..Reload::default() })
    }

    /// Like `reload(false)`, but also accepts a configuration that closes every listener of a listener scope, or every static
    /// listener. The broker refuses such a configuration otherwise, because a misspelt or lost file looks the same.
    ///
    /// # Errors
    /// As [`Client::reload`].
    pub fn force_reload(&self) -> Result<Reloaded, Error> {
        self.0.call(&Reload { last: false, force: Trailing(Some(true)) })
    }

    /// Sends a request without effect, and waits for its reply.
    ///
    /// # Errors
    /// [`Error::Fault`] if the broker refuses the request; any other error if the session has ended.
    pub fn ping(&self) -> Result<(), Error> {
        self.0.call(&Ping {}).map(drop)
    }
}

impl ListenerClient for Client {}

impl sealed::StopListener for Client {
    fn guard_dropped(&self, registration: &Registration) {
        self.0.guard_dropped(registration);
    }

    fn guard_released(&self, registration: &Registration) {
        self.0.guard_released(registration);
    }
}

impl<S> Listener<S> {
    /// Stops the listener, and waits until it is stopped.
    ///
    /// # Errors
    /// As [`Client::ping`]. Stopping a listener that is already stopped is not an error.
    pub fn stop(self) -> Result<(), Error> {
        let result = self.client().map_or(Ok(()), |client| client.0.stop(self.registration()));
        self.disarm();
        result
    }

    /// The reason that this listener is lost, if it is: the session has ended, the next broker refuses the listener, or the
    /// last broker stopped it. Does not wait. A new request for the endpoint returns a socket that works.
    ///
    /// The session learns of the end of its broker during a request, or at once if it reconnects.
    pub fn lost(&self) -> Option<Error> {
        let Some(client) = self.client() else { return Some(Error::Closed) };
        let state = client.0.state();
        let closed = state.connection.closed.clone();
        self.registration().lost().or_else(|| closed.filter(|why| state.ended || !client.0.survives(why)))
    }
}

impl Listener {
    /// Converts the socket into a TCP listener that blocks.
    ///
    /// # Errors
    /// [`Error::WrongKind`] if the socket has another type; the listener then stops.
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

    /// Converts the socket into a UDP socket that blocks.
    ///
    /// # Errors
    /// [`Error::WrongKind`] if the socket has another type; the listener then stops.
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

    /// Converts the socket into a listener for Unix streams that blocks.
    ///
    /// # Errors
    /// [`Error::WrongKind`] if the socket has another type; the listener then stops.
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
