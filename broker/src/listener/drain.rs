//! Draining: a listener takes no new connection, its owner accepts those in the queue, then it is disabled.
//!
//! Promises: an established connection is not reset as long as the worker accepts it in time, and another listener can be
//! bound to the same endpoint meanwhile. Sources: tcp(7) for TCP_INFO, socket(7), and net/ipv4/tcp_ipv4.c of the kernel
//! for what the filter of a listening socket sees.

use std::time::Duration;

use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Endpoint, Fault, FaultCode};

use super::entry::Entry;
use super::registry::Registry;
use super::stop::not_disabled;
use crate::sys::{bpf, sockopt};

/// How long a handshake that has begun may take to complete.
const HANDSHAKE: Duration = Duration::from_millis(100);
/// How long the worker may take to accept the connections in the queue.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// The pause between two checks of the queue.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A listener that was removed from the registry and is not disabled yet.
#[derive(Debug)]
pub struct Draining(Box<Entry>);

impl Draining {
    /// Waits until the queue of a TCP listener is empty, or the time limit is reached.
    pub async fn wait(&self) {
        if !matches!(*self.0.endpoint, Endpoint::Tcp(_)) {
            return;
        }
        tokio::time::sleep(HANDSHAKE).await;
        let mut remaining = MAX_WAIT;
        while !remaining.is_zero()
            && sockopt::accept_queue_length(&self.0.bound.socket).is_ok_and(|length| length > 0)
        {
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
        if entry.endpoint.inet().is_some() {
            // If the kernel refuses one of these, the listener is disabled nevertheless, and clients may see a reset.
            let _ = sockopt::set_reuse_port(&entry.bound.socket, true);
            if matches!(*entry.endpoint, Endpoint::Tcp(_)) {
                let _ = bpf::attach_drop_syn(&entry.bound.socket);
            }
        }
        Ok(Draining(entry))
    }

    /// Disables a drained listener.
    ///
    /// # Errors
    /// The kernel does not let the broker disable it.
    pub fn finish_drain(&self, Draining(entry): Draining) -> Result<(), Fault> {
        let disabled = self.filter.disable(&entry.bound.socket);
        disabled.map_err(|errno| not_disabled(&entry.endpoint, errno))
    }
}
