//! Listeners of the configuration: static ones, which outlive every worker, and floating ones, which start and stop with
//! their floating address.

use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use portreeve_protocol::message::{ListenOptions, ListenerId};
use portreeve_protocol::{Endpoint, Fault};

use super::bind::{Bound, bind};
use super::entry::{NewEntry, Owner};
use super::fault::{BindError, Context as _, RequestedBy, in_use};
use super::registry::Registry;
use crate::config::SocketOptions;
use crate::sys::sockopt;

impl Registry {
    /// Binds a static listener at start.
    ///
    /// # Errors
    /// The registry is full, or the socket cannot be bound.
    pub fn bind_static(
        &mut self,
        endpoint: Endpoint,
        settings: &SocketOptions,
        name: &str,
    ) -> Result<(), Fault> {
        let bound = bind(&self.directories, &endpoint, &ListenOptions::default(), settings)
            .map_err(|error| self.bind_fault(error, &endpoint, RequestedBy::Configuration))?;
        self.insert(NewEntry::configured(endpoint, bound, name, false));
        Ok(())
    }

    /// Binds a floating listener whose address has just been added. Connections wait in its queue until the worker requests
    /// it. `None` if the worker listens there already.
    ///
    /// # Errors
    /// Another owner listens there, the registry is full, or the socket cannot be bound.
    pub fn bind_floating(
        &mut self,
        endpoint: &Endpoint,
        settings: &SocketOptions,
        name: &str,
    ) -> Result<Option<ListenerId>, Fault> {
        match self.owner_at(endpoint) {
            Some(Owner::Worker) => return Ok(None),
            Some(owner) => return Err(in_use(endpoint, owner)),
            None => self.check_capacity()?,
        }
        let bound = bind(&self.directories, endpoint, &ListenOptions::default(), settings)
            .map_err(|error| self.bind_fault(error, endpoint, RequestedBy::Configuration))?;
        Ok(Some(self.insert(NewEntry::configured(endpoint.clone(), bound, name, true))))
    }

    /// Binds a static listener of a new configuration, even if listeners that are about to close occupy its endpoint.
    ///
    /// # Errors
    /// The registry is full, or the socket cannot be bound.
    pub fn bind_static_beside(
        &mut self,
        endpoint: &Endpoint,
        settings: &SocketOptions,
        name: &str,
        closing: &[ListenerId],
    ) -> Result<ListenerId, Fault> {
        self.check_capacity()?;
        let options = ListenOptions::default();
        let bound = bind(&self.directories, endpoint, &options, settings).or_else(|error| {
            match error.errno == Errno::EADDRINUSE && endpoint.inet().is_some() {
                true => self.bind_sharing(endpoint, settings, closing),
                false => Err(error),
            }
        });
        let bound = bound.map_err(|error| self.bind_fault(error, endpoint, RequestedBy::Configuration))?;
        Ok(self.insert(NewEntry::configured(endpoint.clone(), bound, name, false)))
    }

    /// Two sockets can be bound to one endpoint while both have SO_REUSEPORT, which a bound socket accepts too.
    fn bind_sharing(
        &self,
        endpoint: &Endpoint,
        settings: &SocketOptions,
        closing: &[ListenerId],
    ) -> Result<Bound, BindError> {
        const CALL: &str = "setsockopt SO_REUSEPORT";
        for entry in closing.iter().filter_map(|id| self.entries.get(id)) {
            sockopt::set_reuse_port(&entry.bound.socket, true).context(CALL)?;
        }
        let sharing = ListenOptions { reuse_port: true, ..ListenOptions::default() };
        let bound = bind(&self.directories, endpoint, &sharing, settings)?;
        sockopt::set_reuse_port(&bound.socket, false).context(CALL)?;
        Ok(bound)
    }

    /// Makes a listener of the worker a configured one with this name, floating or static, or with `None` one that the
    /// worker requested.
    pub fn set_configured(&mut self, id: ListenerId, name: Option<&str>, floating: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.name = name.map(Into::into);
            entry.retained_until = None;
            if std::mem::replace(&mut entry.floating, floating) != floating {
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

    /// The static listeners with their names, in the order of the configuration.
    pub fn static_listeners(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        let fixed = self.entries.values().filter(|entry| !entry.floating);
        fixed.filter_map(|entry| Some((entry.name.as_deref()?, entry.bound.socket.as_fd())))
    }
}
