//! The asynchronous client, for tokio.
//!
//! Any number of requests can be in flight at once. Dropping the last handle and guard ends the session.

use std::os::fd::OwnedFd;
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
use tokio::net::{TcpListener, UdpSocket, UnixListener};

use crate::build;
use crate::channel::Channel;
use crate::error::Error;
use crate::listen_options::{Listen, ListenOptions};
use crate::listener::{ListenerClient, ListenerGuard, Registration, sealed};
use crate::request::Request;
use crate::session::Session;

/// A listener of the asynchronous client. See [`ListenerGuard`].
pub type Listener<S = OwnedFd> = ListenerGuard<S, Client>;

/// A session with the broker. Clones share it.
#[derive(Clone, Debug)]
pub struct Client(Arc<Session>);

impl Client {
    /// Opens a session on a channel, within a tokio runtime that has its I/O and time drivers enabled. `name` identifies this
    /// program in the broker's logs.
    ///
    /// # Errors
    /// [`Error::Ended`] with the broker's reason, or another error if no session can be opened.
    pub async fn open(channel: Channel, name: &str) -> Result<Self, Error> {
        Ok(Self(Arc::new(Session::open(channel, name).await?)))
    }

    /// The present broker's reply to the opening of the session: its identity, and the operations that this peer is allowed.
    /// `None` before the first broker has replied.
    pub fn welcome(&self) -> Option<Arc<Welcome>> {
        self.0.welcome()
    }

    /// Requests a listener. A repeated request for the same endpoint returns the same socket.
    ///
    /// The broker may carry out a cancelled call. Its listener then belongs to the session until it is requested again and
    /// stopped, or the session ends.
    ///
    /// # Errors
    /// [`Error::Fault`] with the broker's reason; [`Error::DescriptorsLost`], after which the request can be repeated.
    pub async fn listen(&self, endpoint: &Endpoint, options: &ListenOptions) -> Result<Listener, Error> {
        let registered = self.0.listen(&build::listen(endpoint, options, self.welcome().as_deref())?).await?;
        ListenerGuard::new(self.clone(), (endpoint.clone(), options.backlog), registered)
    }

    /// Requests a batch of listeners, at most 253. The results are in the order of the request.
    ///
    /// # Errors
    /// As [`Client::listen`] if the request as a whole fails; a [`Fault`] in the results for each listener that fails. With
    /// `all_or_nothing`, one failure makes all of them fail.
    pub async fn listen_many(
        &self,
        listeners: &[Listen],
        all_or_nothing: bool,
    ) -> Result<Vec<Result<Listener, Fault>>, Error> {
        let request = build::listen_many(listeners, all_or_nothing, self.welcome().as_deref())?;
        let results = self.0.listen_many(&request).await?;
        build::guards(self, listeners, results)
    }

    /// Stops listeners by number, at most 253, and returns the numbers that are not listeners of this peer.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub async fn stop(&self, listeners: &[ListenerId]) -> Result<Stopped, Error> {
        self.0.call(&build::stop(listeners)?).await
    }

    /// Returns the broker's status, with the page of listeners that begins after the number `after`; 0 for the first page.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub async fn status(&self, after: u64) -> Result<Status, Error> {
        self.0.call(&StatusRequest { after }).await
    }

    /// Returns the broker's metrics.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub async fn metrics(&self) -> Result<Metrics, Error> {
        self.0.call(&MetricsRequest {}).await
    }

    /// Returns one page of the rules that apply to this peer, of the topology and of the floating addresses. `after` is the
    /// number of rows to skip, 0 for the first page.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub async fn policy(&self, after: u32) -> Result<PolicyPage, Error> {
        self.0.call(&PolicyRequest { after }).await
    }

    /// Returns the settings of the cluster: what a coordinator on this host needs from the configuration.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub async fn cluster_settings(&self) -> Result<ClusterSettings, Error> {
        self.0.call(&ClusterRequest {}).await
    }

    /// Returns the state of the broker's worker.
    ///
    /// # Errors
    /// As [`Client::ping`]; the fault `unsupported` if the configuration has no worker.
    pub async fn worker(&self) -> Result<WorkerStatus, Error> {
        self.0.call(&WorkerRequest {}).await
    }

    /// Stops the broker's worker and starts it again; its listeners stay open meanwhile. Returns when the new one runs.
    ///
    /// # Errors
    /// As [`Client::worker`].
    pub async fn restart_worker(&self) -> Result<WorkerStatus, Error> {
        self.0.call(&RestartWorker {}).await
    }

    /// Sends a signal to the broker's worker, by its number, and returns the worker's process id. See signal(7).
    ///
    /// # Errors
    /// As [`Client::worker`]; the fault `not-found` while no worker runs, `invalid` for a number that is no signal.
    pub async fn signal_worker(&self, signal: u8) -> Result<u32, Error> {
        Ok(self.0.call(&SignalWorker { signal }).await?.pid)
    }

    /// Sets a resource limit of this process and returns the limit in force. The resource is named as in getrlimit(2), for
    /// example `nofile`. `None` changes nothing; [`UNLIMITED`](crate::limit::UNLIMITED) removes the limit.
    ///
    /// # Errors
    /// As [`Client::ping`].
    pub async fn set_limit(
        &self,
        resource: &str,
        soft: Option<u64>,
        hard: Option<u64>,
    ) -> Result<CurrentLimit, Error> {
        self.0.call(&SetLimit { resource: build::text("the resource name", resource)?, soft, hard }).await
    }

    /// Makes the broker read its configuration again, and returns what changed. With `last` the broker reads nothing, and the
    /// result is that of the last reload.
    ///
    /// # Errors
    /// [`Error::Fault`] with the first mistake of an invalid configuration; the old one stays in force.
    pub async fn reload(&self, last: bool) -> Result<Reloaded, Error> {
        self.0.call(&Reload { last, ..Reload::default() }).await
    }

    /// Like `reload(false)`, but also accepts a configuration that closes every listener of a listener scope, or every static
    /// listener. The broker refuses such a configuration otherwise, because a misspelt or lost file looks the same.
    ///
    /// # Errors
    /// As [`Client::reload`].
    pub async fn force_reload(&self) -> Result<Reloaded, Error> {
        self.0.call(&Reload { last: false, force: Trailing(Some(true)) }).await
    }

    /// Sends a request without effect, and waits for its reply.
    ///
    /// # Errors
    /// [`Error::Fault`] if the broker refuses the request; any other error if the session has ended.
    pub async fn ping(&self) -> Result<(), Error> {
        self.0.call(&Ping {}).await.map(drop)
    }

    pub(crate) fn session(&self) -> &Session {
        &self.0
    }

    pub(crate) async fn call<O: Request>(&self, request: &O) -> Result<O::Output, Error> {
        self.0.call(request).await
    }

    /// Waits until the session has ended, and returns the reason. Sockets received from the broker remain usable.
    pub async fn closed(&self) -> Error {
        self.0.closed().await
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
    pub async fn stop(self) -> Result<(), Error> {
        if let Some(client) = self.client() {
            client.session().stop(self.registration()).await?;
        }
        self.disarm();
        Ok(())
    }

    /// Waits until this listener is lost, and returns the reason: the session has ended, the next broker refuses the
    /// listener, or the last broker stopped it. After the end of the session the socket may still work. A new request for
    /// the endpoint returns a socket that works.
    ///
    /// After a broker was killed, the guard's own socket can still occupy the endpoint, so that the next broker cannot open
    /// the listener. In that case the listener is not lost.
    pub async fn lost(&self) -> Error {
        match self.client() {
            Some(client) => client.session().lost(self.registration()).await,
            None => Error::Closed,
        }
    }
}

impl Listener {
    /// Converts the socket into tokio's TCP listener.
    ///
    /// # Errors
    /// [`Error::WrongKind`] if the socket has another type; the listener then stops.
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

    /// Converts the socket into tokio's UDP socket.
    ///
    /// # Errors
    /// [`Error::WrongKind`] if the socket has another type; the listener then stops.
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

    /// Converts the socket into tokio's listener for Unix streams.
    ///
    /// # Errors
    /// [`Error::WrongKind`] if the socket has another type; the listener then stops.
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
