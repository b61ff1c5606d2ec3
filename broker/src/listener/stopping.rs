//! The end of listeners: asked for, with their owner, with their address, or when nobody came for them.
//!
//! Promises: what is stopped is out of service for everyone who has its socket, and its file is gone.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Instant;

use portreeve_protocol::Fault;
use portreeve_protocol::message::ListenerId;

use super::bind::BindError;
use super::entry::{Entry, Owner};
use super::registry::Registry;
use crate::sys::malloc;

/// From how many on the memory of listeners is worth giving back.
const MANY: usize = 512;

impl Registry {
    /// Takes a listener out of service. `owner` is who asks; `None` may stop anyone's. False when there is no
    /// such listener of the owner's.
    pub fn stop(&mut self, id: ListenerId, owner: Option<Owner>) -> Result<bool, Fault> {
        let Some(entry) = self.entries.get(&id) else {
            return Ok(false);
        };
        if owner.is_some_and(|owner| owner != entry.owner) {
            return Ok(false);
        }
        self.filter
            .end(&entry.bound.socket)
            .map_err(|errno| BindError { call: "taking it out of service", errno }.fault(&entry.endpoint))?;
        self.remove(id);
        Ok(true)
    }

    fn remove(&mut self, id: ListenerId) {
        if let Some(entry) = self.take(id) {
            drop(entry);
            self.give_back();
        }
    }

    /// Takes a listener out, and its file away.
    pub(super) fn take(&mut self, id: ListenerId) -> Option<Box<Entry>> {
        let entry = self.entries.remove(&id)?;
        self.changed(id);
        self.by_endpoint.remove(&entry.endpoint);
        self.uncount(entry.owner);
        if let Some(file) = &entry.bound.file {
            file.remove(&self.directories);
        }
        Some(entry)
    }

    /// Counts one less for an owner.
    pub(super) fn uncount(&mut self, owner: Owner) {
        if let Some(count) = self.counts.get_mut(&owner) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&owner);
            }
        }
    }

    /// What thousands of listeners took is given back to the kernel once nearly all of them are gone.
    fn give_back(&mut self) {
        let (held, room) = (self.entries.len(), self.by_endpoint.capacity());
        if room >= MANY && held < room / 8 {
            self.by_endpoint.shrink_to(2 * held);
            malloc::give_back();
        }
    }

    /// Stops everything that the owner has, static listeners and all.
    pub fn stop_all(&mut self, owner: Owner) -> Vec<Fault> {
        let theirs = |entry: &Entry| entry.owner == owner;
        self.stop_where(theirs)
    }

    /// Keeps what the worker asked for until `deadline`, for its successor, and what a former broker kept for a user;
    /// static listeners stay anyhow. What waits for a successor already waits no longer for that.
    pub fn retain_until(&mut self, deadline: Instant) {
        let session = |entry: &Entry| matches!(entry.owner, Owner::Session(_));
        for entry in self.entries.values_mut().filter(|entry| !session(entry) && entry.name.is_none()) {
            entry.retained_until.get_or_insert(deadline);
        }
    }

    /// Stops what was retained and nobody asked for in time.
    pub fn stop_expired(&mut self, now: Instant) -> Vec<Fault> {
        self.stop_where(|entry| entry.retained_until.is_some_and(|deadline| deadline <= now))
    }

    /// Stops what listens at these addresses.
    pub fn stop_at(&mut self, addresses: &HashSet<IpAddr>) -> Vec<Fault> {
        self.stop_where(|entry| entry.endpoint.inet().is_some_and(|inet| addresses.contains(&inet.address)))
    }

    fn stop_where(&mut self, which: impl Fn(&Entry) -> bool) -> Vec<Fault> {
        let ids: Vec<ListenerId> =
            self.entries.iter().filter(|(_, entry)| which(entry)).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.stop(id, None).err()).collect()
    }

    /// Stops everything but what somebody else `keeps` open, which is closed here alone.
    pub fn stop_everything(&mut self, keeps: impl Fn(ListenerId) -> bool) -> Vec<Fault> {
        self.entries.retain(|id, _| !keeps(*id));
        self.stop_where(|_| true)
    }
}
