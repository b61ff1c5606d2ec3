//! The guard of a listener: it keeps a socket together with its listener, and stops the listener when it is dropped.
//!
//! Both clients use this guard; they differ in how they send the stop.

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::ListenerId;

use crate::build::RegisteredListener;
use crate::error::Error;

/// The backlog of a Unix socket for which none is requested. The kernel caps it at net.core.somaxconn.
const UNIX_BACKLOG: i32 = 500;

/// A client that returns guarded listeners. Sealed: only the two clients of this crate implement it.
pub trait ListenerClient: sealed::StopListener {}

pub(crate) mod sealed {
    /// Stops the listener of a dropped guard.
    pub trait StopListener {
        /// Sends or queues the stop of a listener. A failure is ignored, because a destructor cannot report it.
        fn guard_dropped(&self, registration: &super::Registration);
        /// Forgets a listener whose guard does not exist any more. It stays open.
        fn guard_released(&self, registration: &super::Registration);
    }
}

/// The registration of a listener with the broker, shared by its guard and its session. After a reconnection the listener
/// may have another number.
#[derive(Clone, Debug)]
pub struct Registration(Arc<Mutex<RegistrationState>>);

#[derive(Debug)]
struct RegistrationState {
    id: Option<ListenerId>,
    /// Whether the guard still exists.
    guarded: bool,
    lost: Option<Error>,
}

impl Registration {
    pub(crate) fn new(id: ListenerId) -> Self {
        Self(Arc::new(Mutex::new(RegistrationState { id: Some(id), guarded: true, lost: None })))
    }

    fn state(&self) -> MutexGuard<'_, RegistrationState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listener's number in the present broker; `None` if that broker does not have the listener.
    pub(crate) fn id(&self) -> Option<ListenerId> {
        self.state().id
    }

    pub(crate) fn set_id(&self, id: Option<ListenerId>) {
        self.state().id = id;
    }

    /// A key that all clones share. It is unique while one of them exists.
    pub(crate) fn key(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Records that the guard was dropped.
    pub(crate) fn set_unguarded(&self) {
        self.state().guarded = false;
    }

    /// Whether the guard exists and the listener is not lost.
    pub(crate) fn is_wanted(&self) -> bool {
        let state = self.state();
        state.guarded && state.lost.is_none()
    }

    /// Records that the listener is lost, and the reason.
    pub(crate) fn set_lost(&self, why: Error) {
        self.state().lost = Some(why);
    }

    /// The reason that the listener is lost, if it is.
    pub(crate) fn lost(&self) -> Option<Error> {
        self.state().lost.clone()
    }
}

/// A listener with its socket `S`, which stops when the guard is dropped.
///
/// Dropping the guard stops the listener for every process that has its socket. [`into_socket`](Self::into_socket) takes the
/// socket out of the guard; the listener then stays open until the session ends. Two guards of the same endpoint share one
/// listener: dropping either guard stops it.
#[must_use = "a listener stops when its guard is dropped"]
#[derive(Debug)]
pub struct ListenerGuard<S, C: ListenerClient> {
    stop: StopOnDrop<C>,
    endpoint: Endpoint,
    socket: S,
}

#[derive(Debug)]
struct StopOnDrop<C: ListenerClient> {
    registration: Registration,
    /// `None` if the listener needs no stop.
    client: Option<C>,
}

impl<C: ListenerClient> Drop for StopOnDrop<C> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            client.guard_dropped(&self.registration);
        }
    }
}

impl<C: ListenerClient> ListenerGuard<OwnedFd, C> {
    /// A guard of a received socket. On a Unix socket it calls listen(2): the broker leaves that to its peer, because clients
    /// see the credentials of the process that called it. If that fails, the listener stops.
    pub(crate) fn new(
        client: C,
        (endpoint, backlog): (Endpoint, Option<u32>),
        (registration, socket): RegisteredListener,
    ) -> Result<Self, Error> {
        let guard = Self { stop: StopOnDrop { registration, client: Some(client) }, endpoint, socket };
        if guard.endpoint.inet().is_none() {
            let backlog = backlog.map_or(UNIX_BACKLOG, |backlog| i32::try_from(backlog).unwrap_or(i32::MAX));
            let listening = rustix::net::listen(&guard.socket, backlog);
            listening.map_err(Error::io("cannot listen on a Unix socket"))?;
        }
        Ok(guard)
    }
}

impl<S, C: ListenerClient> ListenerGuard<S, C> {
    /// The listener's number in the broker; 0 while no broker has it.
    pub fn id(&self) -> ListenerId {
        self.stop.registration.id().unwrap_or(ListenerId(0))
    }

    pub(crate) fn registration(&self) -> &Registration {
        &self.stop.registration
    }

    /// The endpoint of the listener.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Takes the socket out of the guard. The listener stays open until the session ends, and is not requested again from the next
    /// broker.
    pub fn into_socket(mut self) -> S {
        if let Some(client) = self.stop.client.take() {
            client.guard_released(&self.stop.registration);
        }
        self.socket
    }

    /// The same listener with its socket as another type. If that fails, the listener stops.
    pub(crate) fn convert<T>(
        self,
        wanted: &'static str,
        fits: impl FnOnce(&Endpoint) -> bool,
        into: impl FnOnce(S) -> std::io::Result<T>,
    ) -> Result<ListenerGuard<T, C>, Error> {
        if !fits(&self.endpoint) {
            return Err(Error::WrongKind { endpoint: self.endpoint, wanted });
        }
        Ok(ListenerGuard {
            socket: into(self.socket).map_err(Error::io("cannot prepare the socket of a listener"))?,
            stop: self.stop,
            endpoint: self.endpoint,
        })
    }

    /// The client that stops the listener; `None` if it needs no stop.
    pub(crate) fn client(&self) -> Option<&C> {
        self.stop.client.as_ref()
    }

    /// Drops the guard of a listener that is already stopped.
    pub(crate) fn disarm(mut self) {
        self.stop.client = None;
    }
}

impl<S, C: ListenerClient> Deref for ListenerGuard<S, C> {
    type Target = S;
    fn deref(&self) -> &S {
        &self.socket
    }
}

impl<S, C: ListenerClient> DerefMut for ListenerGuard<S, C> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.socket
    }
}

impl<S: AsFd, C: ListenerClient> AsFd for ListenerGuard<S, C> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
