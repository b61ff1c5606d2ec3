//! Listeners of the configuration: static ones, which outlive every worker, and floating ones, which start and stop with
//! their floating address.

use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;

use portreeve_protocol::message::{ListenOptions, ListenerId};
use portreeve_protocol::{Endpoint, Fault};

use super::bind::Bound;
use super::entry::{NewEntry, Owner};
use super::fault::{RequestedBy, in_use};
use super::registry::Registry;
use super::vrf::options_in_vrf;
use crate::config::SocketOptions;
use crate::holder::Holder;

impl Registry {
    /// Binds a floating listener whose address has just been added, in this VRF. Connections wait in its queue until the worker
    /// requests it. `None` if the worker listens there already.
    ///
    /// # Errors
    /// Another owner listens there, the registry is full, or the socket cannot be bound.
    pub fn bind_floating(
        &mut self,
        endpoint: &Endpoint,
        settings: &SocketOptions,
        name: &str,
        vrf: Option<&str>,
    ) -> Result<Option<ListenerId>, Fault> {
        self.end_closed_at(endpoint, &ListenOptions::default());
        match self.owner_at(endpoint) {
            Some(Owner::Worker) => return Ok(None),
            Some(owner) => return Err(in_use(endpoint, owner)),
            None => self.check_capacity()?,
        }
        let options = ListenOptions::default();
        self.check_overlap(endpoint, &options, Holder::Worker, &[])?;
        let bound = self
            .open(endpoint, &options_in_vrf(endpoint, &options, vrf), settings, &[])
            .map_err(|error| self.bind_fault(error, endpoint, &options, RequestedBy::Configuration))?;
        Ok(Some(self.insert(NewEntry::configured(endpoint.clone(), bound, name, true))))
    }

    /// Binds a static listener, or a floating one whose address is on this host, even if listeners that are about to close
    /// occupy its TCP or UDP endpoint. `vrf` is the VRF of a floating listener.
    ///
    /// # Errors
    /// Another holder listens at an endpoint that overlaps, or the socket cannot be bound.
    pub fn bind_static(
        &mut self,
        endpoint: &Endpoint,
        settings: &SocketOptions,
        name: &str,
        closing: &[ListenerId],
        vrf: Option<&str>,
    ) -> Result<ListenerId, Fault> {
        let options = ListenOptions::default();
        self.end_closed_at(endpoint, &options);
        self.check_overlap(endpoint, &options, Holder::Worker, closing)?;
        let overlapping = self.overlapping(endpoint, &options).map(|(id, _)| id);
        let closing: Vec<ListenerId> = overlapping.filter(|id| closing.contains(id)).collect();
        let sockets: Vec<&Bound> =
            closing.iter().filter_map(|id| Some(&self.entries.get(id)?.bound)).collect();
        let opened = self.open(endpoint, &options_in_vrf(endpoint, &options, vrf), settings, &sockets);
        let bound = opened.map_err(|error| {
            self.end_sharing(&closing);
            self.bind_fault(error, endpoint, &options, RequestedBy::Configuration)
        })?;
        Ok(self.insert(NewEntry::configured(endpoint.clone(), bound, name, false)))
    }

    /// Makes listeners that were about to close, and that stay, share their endpoints no longer, unless that was requested.
    pub fn end_sharing(&self, ids: &[ListenerId]) {
        for entry in ids.iter().filter_map(|id| self.entries.get(id)) {
            let requested = entry.options.as_ref().is_some_and(|options| options.reuse_port);
            if entry.endpoint.inet().is_some() {
                let _ = entry.bound.end_share(&entry.endpoint, requested); // an open socket accepts it
            }
        }
    }

    /// Makes a listener of the worker a configured one with this name, floating or static, or with `None` one that the
    /// worker requested.
    pub fn set_configured(&mut self, id: ListenerId, name: Option<&str>, floating: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            let was_configured = entry.name.is_some();
            entry.name = name.map(Into::into);
            entry.retained_until = None;
            let was_floating = std::mem::replace(&mut entry.floating, floating);
            if (was_floating, was_configured) != (floating, name.is_some()) {
                self.record_change(id);
            }
        }
    }

    /// Applies to a listener the settings that the kernel accepts for a bound socket.
    ///
    /// # Errors
    /// The first setting that the kernel refuses, as a sentence.
    pub fn apply_settings(&self, id: ListenerId, settings: &SocketOptions) -> Result<(), String> {
        let Some(entry) = self.entries.get(&id) else {
            return Ok(());
        };
        let applied = entry.bound.apply(&entry.endpoint, settings);
        applied.map_err(|error| format!("cannot change {}: {error}", entry.endpoint))
    }

    /// The static listeners with their names and endpoints, in the order of the configuration.
    pub fn static_listeners(&self) -> impl Iterator<Item = (&str, &Endpoint, BorrowedFd<'_>)> {
        let fixed = self.entries.values().filter(|entry| !entry.floating);
        fixed.filter_map(|entry| {
            Some((entry.name.as_deref()?, &*entry.endpoint, entry.bound.socket.as_ref()?.as_fd()))
        })
    }
}
