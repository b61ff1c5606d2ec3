//! The listener's guard: it keeps a socket together with its listener and stops the listener when dropped.
//!
//! One guard serves both clients; they differ only in how a stop is sent.

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::ListenerId;

use crate::error::Error;

/// Whoever can stop a listener when its guard is dropped.
pub trait Stopper {
    /// Stops it, or as much as can be done of that without an error to tell.
    #[doc(hidden)]
    fn stop_dropped(&self, number: &Number);
}

/// The number of a listener, which another broker may give another one.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Number(Arc<Mutex<Named>>);

#[derive(Debug)]
struct Named {
    id: Option<ListenerId>,
    /// Its guard is there still.
    wanted: bool,
    lost: Option<Error>,
}

impl Number {
    pub(crate) fn new(id: ListenerId) -> Self {
        Self(Arc::new(Mutex::new(Named { id: Some(id), wanted: true, lost: None })))
    }

    fn named(&self) -> MutexGuard<'_, Named> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number with the broker that there is.
    pub(crate) fn id(&self) -> Option<ListenerId> {
        self.named().id
    }
}

#[cfg(feature = "tokio")]
impl Number {
    pub(crate) fn set(&self, id: Option<ListenerId>) {
        self.named().id = id;
    }

    /// The same for every clone, and for nothing else while there is one.
    pub(crate) fn key(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Its guard is gone.
    pub(crate) fn drop_guard(&self) {
        self.named().wanted = false;
    }

    /// Whether its guard is there, and the listener was not lost.
    pub(crate) fn is_wanted(&self) -> bool {
        let named = self.named();
        named.wanted && named.lost.is_none()
    }

    /// No broker keeps it, and none will.
    pub(crate) fn lose(&self, why: Error) {
        self.named().lost = Some(why);
    }

    /// Why none does.
    pub(crate) fn lost(&self) -> Option<Error> {
        self.named().lost.clone()
    }
}

/// A listener: its socket, and the duty to stop it.
///
/// Dropping it stops the listener, whoever else holds the socket; `keep` takes the socket and leaves the
/// listener in service for as long as the session lasts. Two guards of one endpoint are one listener, which
/// the first to be dropped stops.
#[must_use = "a listener stops when it is dropped"]
#[derive(Debug)]
pub struct Guard<S, C: Stopper> {
    held: Held<C>,
    endpoint: Endpoint,
    socket: S,
}

#[derive(Debug)]
struct Held<C: Stopper> {
    number: Number,
    client: Option<C>,
}

impl<C: Stopper> Drop for Held<C> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            client.stop_dropped(&self.number);
        }
    }
}

impl<C: Stopper> Guard<OwnedFd, C> {
    pub(crate) fn new(client: C, endpoint: Endpoint, number: Number, socket: OwnedFd) -> Self {
        Self { held: Held { number, client: Some(client) }, endpoint, socket }
    }
}

impl<S, C: Stopper> Guard<S, C> {
    /// The listener's number in the broker; 0 while none keeps it.
    pub fn id(&self) -> ListenerId {
        self.held.number.id().unwrap_or(ListenerId(0))
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn number(&self) -> &Number {
        &self.held.number
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Takes the socket out and leaves the listener in service while the session lasts.
    pub fn keep(mut self) -> S {
        self.held.client = None;
        self.socket
    }

    /// The same listener with its socket as another type. Where that fails the listener stops.
    pub(crate) fn convert<T>(
        self,
        wanted: &'static str,
        fits: impl FnOnce(&Endpoint) -> bool,
        into: impl FnOnce(S) -> std::io::Result<T>,
    ) -> Result<Guard<T, C>, Error> {
        if !fits(&self.endpoint) {
            return Err(Error::WrongKind { endpoint: self.endpoint, wanted });
        }
        Ok(Guard {
            socket: into(self.socket).map_err(Error::io("preparing a listener's socket"))?,
            held: self.held,
            endpoint: self.endpoint,
        })
    }

    /// Who can stop it, and its number; forgets the duty once `stopped` is called.
    pub(crate) fn client(&self) -> Option<&C> {
        self.held.client.as_ref()
    }

    pub(crate) fn stopped(mut self) {
        self.held.client = None;
    }
}

impl<S, C: Stopper> Deref for Guard<S, C> {
    type Target = S;
    fn deref(&self) -> &S {
        &self.socket
    }
}

impl<S, C: Stopper> DerefMut for Guard<S, C> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.socket
    }
}

impl<S: AsFd, C: Stopper> AsFd for Guard<S, C> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
