//! Draining: a listener takes no new connection, its owner accepts those in the queue, then it is disabled.
//!
//! Promises: an established connection is not reset as long as the worker accepts it in time, and another listener can be
//! bound to the same endpoint meanwhile. Sources: tcp(7) for TCP_INFO, socket(7), and net/ipv4/tcp_ipv4.c of the kernel
//! for what the filter of a listening socket sees.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Endpoint, Fault, FaultCode};

use super::entry::Entry;
use super::registry::Registry;
use crate::sys::sockopt;

/// How long a handshake that has begun may take to complete.
const HANDSHAKE: Duration = Duration::from_millis(100);
/// How long the worker may take to accept the connections in the queue.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// The pause between two checks of the queue.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A listener that was removed from the registry and is not revoked yet.
#[derive(Debug)]
pub struct Draining(Rc<DrainingEntry>);

/// The same, shared with the registry: another listener may need its endpoint.
#[derive(Debug)]
pub(super) struct DrainingEntry {
    pub entry: Box<Entry>,
    revoked: Cell<bool>,
}

impl Draining {
    /// Waits until the queue of a TCP listener is empty, or the time limit is reached.
    pub async fn wait(&self) {
        if !matches!(*self.0.entry.endpoint, Endpoint::Tcp(_)) {
            return;
        }
        tokio::time::sleep(HANDSHAKE).await;
        let mut remaining = MAX_WAIT;
        // The holder of a socket that the broker does not keep has its queue in any case.
        let Some(socket) = &self.0.entry.bound.socket else { return };
        while !remaining.is_zero() && sockopt::accept_queue_length(socket).is_ok_and(|length| length > 0) {
            tokio::time::sleep(POLL_INTERVAL).await;
            remaining = remaining.saturating_sub(POLL_INTERVAL);
        }
    }
}

impl Registry {
    /// Removes a listener from the registry; no new connection reaches it.
    ///
    /// # Errors
    /// There is no such listener.
    pub fn start_drain(&mut self, id: ListenerId) -> Result<Draining, Fault> {
        let Some(entry) = self.remove_entry(id) else {
            return Err(Fault::new(FaultCode::NotFound, "no such listener"));
        };
        if matches!(*entry.endpoint, Endpoint::Tcp(_)) {
            self.revocation.drain(entry.bound.revocability, entry.bound.socket.as_ref());
        }
        let draining = Rc::new(DrainingEntry { entry, revoked: Cell::new(false) });
        self.draining.retain(|other| other.strong_count() > 0);
        self.draining.push(Rc::downgrade(&draining));
        Ok(Draining(draining))
    }

    /// Revokes a drained listener.
    ///
    /// # Errors
    /// A process that holds a copy of its socket can use it again.
    pub fn finish_drain(&mut self, Draining(draining): Draining) -> Result<(), Fault> {
        let revoked = self.revoke_drained(&draining);
        if let Ok(DrainingEntry { entry, .. }) = Rc::try_unwrap(draining) {
            self.keep_stopped(*entry);
        }
        revoked
    }

    /// Revokes a draining listener, if it is not revoked yet.
    pub(super) fn revoke_drained(&self, draining: &DrainingEntry) -> Result<(), Fault> {
        match draining.revoked.replace(true) {
            true => Ok(()),
            false => self.revoke(&draining.entry),
        }
    }
}
