//! Stopping listeners: on request, with their owner, with their address, or when no peer adopts them in time.
//!
//! Promises: a stopped listener leaves the registry in any case, it is revoked in every copy of its socket, and its file is
//! removed. A listener that the kernel does not let the broker revoke is named in the fault and in `status`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;
use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Endpoint, Fault, FaultCode};
use tokio::sync::Notify;

use super::entry::{Entry, Owner};
use super::registry::Registry;
use super::stopped_sockets::release_endpoint;
use crate::sys::malloc;

/// The number of listeners from which on it is worth returning their memory to the kernel.
const TRIM_FROM: usize = 512;

impl Registry {
    /// Stops a listener. `owner` restricts it to that owner's; `None` allows any. False when there is no such listener.
    ///
    /// # Errors
    /// The listener has stopped, but a process that holds a copy of its socket can use it again.
    pub fn stop(&mut self, id: ListenerId, owner: Option<Owner>) -> Result<bool, Fault> {
        if self.entries.get(&id).is_none_or(|entry| owner.is_some_and(|owner| owner != entry.owner)) {
            return Ok(false);
        }
        let Some(entry) = self.remove_entry(id) else { return Ok(false) };
        if self.is_emptied() {
            self.emptied.notify_one();
        }
        let revoked = self.revoke(&entry);
        let holder = entry.holder();
        match &entry.bound.socket {
            // The owner of a UDP socket frees its endpoint by closing its copy. Every other program can then bind there at once.
            Some(socket) if owner.is_some() && matches!(*entry.endpoint, Endpoint::Udp(_)) => {
                release_endpoint(&entry.endpoint, socket);
                self.stopped.note_closed(entry.endpoint, holder);
            }
            _ => self.keep_stopped(*entry),
        }
        revoked.map(|()| true)
    }

    /// Disables a socket in every copy.
    pub(super) fn revoke(&self, entry: &Entry) -> Result<(), Fault> {
        let revoked = self.revocation.revoke(entry.bound.revocability, entry.bound.socket.as_ref());
        revoked.map_err(|errno| {
            let fault = not_revoked(&entry.endpoint, errno);
            self.note_not_revoked(&fault);
            fault
        })
    }

    /// Keeps the socket of a revoked listener for a while, if the broker has it.
    pub(super) fn keep_stopped(&mut self, entry: Entry) {
        if entry.endpoint.inet().is_some() {
            let holder = entry.holder();
            match entry.bound.socket {
                Some(socket) => self.stopped.keep(entry.endpoint, holder, socket),
                None => self.stopped.note_unkept(entry.endpoint, holder),
            }
        }
    }

    /// Removes a listener from the registry, and its file.
    pub(super) fn remove_entry(&mut self, id: ListenerId) -> Option<Box<Entry>> {
        let entry = self.entries.remove(&id)?;
        self.record_end(id);
        self.overlaps.remove(id, &entry.endpoint);
        self.remove_from_endpoints(id, &entry.endpoint);
        self.subtract_from(entry.owner);
        if let Some(file) = &entry.bound.file {
            file.remove(&self.directories);
        }
        Some(entry)
    }

    /// Removes a listener from the index by endpoint. While a configured listener replaces a user's, there are two at one
    /// endpoint, and the other one takes the place.
    fn remove_from_endpoints(&mut self, id: ListenerId, endpoint: &Rc<Endpoint>) {
        if self.by_endpoint.get(endpoint) != Some(&id) {
            return;
        }
        let is_there = |id: &ListenerId| self.entry(*id).is_some_and(|entry| entry.endpoint == *endpoint);
        match self.overlaps.at_address(endpoint).find(is_there) {
            Some(other) => self.by_endpoint.insert(endpoint.clone(), other),
            None => self.by_endpoint.remove(endpoint),
        };
    }

    /// Counts one listener less for an owner.
    pub(super) fn subtract_from(&mut self, owner: Owner) {
        if let Some(count) = self.counts.get_mut(&owner) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&owner);
            }
        }
    }

    /// Whether nearly all of many listeners have stopped.
    fn is_emptied(&self) -> bool {
        let capacity = self.by_endpoint.capacity();
        capacity >= TRIM_FROM && self.entries.len() < capacity / 8
    }

    /// Is notified once nearly all of many listeners have stopped.
    pub fn emptied(&self) -> Rc<Notify> {
        self.emptied.clone()
    }

    /// Returns the memory of listeners that have stopped to the kernel, if it is worth it.
    pub fn trim_memory(&mut self) {
        if self.is_emptied() {
            self.by_endpoint.shrink_to(2 * self.entries.len());
            malloc::trim();
        }
    }

    /// Stops every listener of an owner, configured ones too.
    pub fn stop_owned_by(&mut self, owner: Owner) -> Vec<Fault> {
        self.stop_where(|entry| entry.owner == owner)
    }

    /// Retains until `deadline` the listeners that the worker requested, for the next worker, and those that the predecessor
    /// had for a user.
    /// Configured listeners have no deadline. An earlier deadline stays. Those of the worker that the broker does not keep stop.
    pub fn retain_until(&mut self, deadline: Instant) -> Vec<Fault> {
        let faults = self.stop_where(|entry| entry.owner == Owner::Worker && !entry.is_kept());
        let has_session = |entry: &Entry| matches!(entry.owner, Owner::Session(_));
        for entry in self.entries.values_mut().filter(|entry| !has_session(entry) && entry.name.is_none()) {
            entry.retained_until.get_or_insert(deadline);
        }
        faults
    }

    /// Whether any listener is retained until a deadline.
    pub fn has_deadlines(&self) -> bool {
        self.entries.values().any(|entry| entry.retained_until.is_some())
    }

    /// Stops the retained listeners that no peer adopted in time.
    pub fn stop_expired(&mut self, now: Instant) -> Vec<Fault> {
        self.stop_where(|entry| entry.retained_until.is_some_and(|deadline| deadline <= now))
    }

    /// Stops every listener at these addresses.
    pub fn stop_at(&mut self, addresses: &HashSet<IpAddr>) -> Vec<Fault> {
        self.stop_where(|entry| entry.endpoint.inet().is_some_and(|inet| addresses.contains(&inet.address)))
    }

    fn stop_where(&mut self, matches: impl Fn(&Entry) -> bool) -> Vec<Fault> {
        let ids: Vec<ListenerId> =
            self.entries.iter().filter(|(_, entry)| matches(entry)).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.stop(id, None).err()).collect()
    }

    /// Stops every listener except those that another process keeps open: of these, closes only the broker's copy, and leaves
    /// the file of a Unix socket.
    pub fn stop_all_except(&mut self, is_kept: impl Fn(ListenerId) -> bool) -> Vec<Fault> {
        self.entries.retain(|id, _| !is_kept(*id));
        self.stop_where(|_| true)
    }
}

/// The fault of a stopped listener that the kernel does not let the broker revoke.
pub(super) fn not_revoked(endpoint: &Endpoint, errno: Errno) -> Fault {
    let message = format!(
        "the listener on {endpoint} has stopped, but a process that holds a copy of its socket can listen on it again: {}",
        errno.desc()
    );
    Fault::new(FaultCode::Os, &message)
        .subject("revoke")
        .remedy(
            "end every process that holds the socket; start portreeved with cap_bpf on Linux 5.5 or later",
        )
        .errno(errno as i32)
}
