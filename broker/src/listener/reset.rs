//! Resetting a socket for its next holder. All copies of a socket share their options and file status flags, so what one
//! process has set applies to the next one.
//!
//! Promises: a socket is reset when it is passed to a new worker. A listener that a user adopts is not reset: after a takeover the
//! same process requests the socket that it still uses. O_NONBLOCK is not cleared while processes that an earlier worker left may
//! use the socket: accept(2) would block them, together with the connections that they serve.

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::ListenerId;

use super::entry::{Entry, Owner};
use super::registry::Registry;
use crate::sys::{socket, sockopt};

impl Registry {
    /// Learns whether processes that workers have left are running.
    pub fn set_used_by_descendants(&mut self, is_used: bool) {
        self.is_used_by_descendants = is_used;
    }

    /// Resets the configured listeners of the worker, before the next worker starts. `backlog` is that of the configuration.
    pub fn reset_configured(&self, backlog: impl Fn(&Endpoint) -> u32) {
        let of_worker = |entry: &&Entry| entry.owner == Owner::Worker && entry.name.is_some();
        let configured = self.entries.values().map(|entry| &**entry).filter(of_worker);
        configured.for_each(|entry| self.reset_entry(entry, backlog(&entry.endpoint)));
    }

    /// Resets a listener. `backlog` is that of the configuration.
    pub(super) fn reset(&self, id: ListenerId, backlog: u32) {
        self.entries.get(&id).into_iter().for_each(|entry| self.reset_entry(entry, backlog));
    }

    /// Sets what the broker promises, where another value would make the next holder fail: blocking calls without a time limit,
    /// no signals, wake-up for each byte and connection, the requested sharing and deferring, the backlog. A TCP socket that was
    /// shut down listens again.
    fn reset_entry(&self, entry: &Entry, backlog: u32) {
        let Some(socket) = &entry.bound.socket else { return };
        let options = entry.options.as_deref();
        // An open socket accepts all of these; if one failed, the listener would be as the last holder left it.
        if !self.is_used_by_descendants {
            let _ = socket::reset_status_flags(socket);
        }
        let _ = sockopt::clear_timeouts(socket);
        let _ = sockopt::set_receive_low_water_mark(socket, 1);
        let _ = sockopt::clear_linger(socket);
        if entry.endpoint.inet().is_some() {
            let _ = sockopt::set_reuse_port(socket, options.is_some_and(|options| options.reuse_port));
        }
        if matches!(*entry.endpoint, Endpoint::Tcp(_)) {
            let _ = sockopt::set_defer_accept(socket, options.map_or(0, |options| options.defer_accept));
            let _ = socket::listen(socket, options.and_then(|options| options.backlog).unwrap_or(backlog));
        }
    }
}
