//! A peer acquires a listener: the broker binds a new one, returns the one that the peer already has at that endpoint, or
//! lets the peer adopt one that is retained for it. A request that fails as a whole is rolled back.
//!
//! Promises: a request that is refused changes no listener.

use std::time::Instant;

use portreeve_protocol::message::{Listen, ListenerId};
use portreeve_protocol::{Fault, FaultCode};

use super::entry::{NewEntry, Owner};
use super::fault::{RequestedBy, in_use};
use super::registry::Registry;
use super::unkept::in_use_by_own_copy;
use super::vrf::options_in_vrf;
use crate::config::SocketOptions;
use crate::holder::Holder;

/// How a request acquired its listener, with what a rollback needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// It was bound for this request.
    Bound,
    /// The peer owned it already; if it was retained, until this time.
    Existing(Option<Instant>),
    /// It was retained for this user; if there was a deadline, until this time.
    Adopted(u32, Option<Instant>),
}

impl Registry {
    /// Returns the owner's listener at the endpoint, or adopts the one that is retained there for the owner's `user`, or
    /// binds a new one, in this VRF unless the request names an interface.
    ///
    /// # Errors
    /// Another holder listens there or at an endpoint that overlaps, the options differ, or the socket cannot be bound.
    pub fn acquire(
        &mut self,
        owner: Owner,
        user: Option<u32>,
        request: &Listen,
        settings: &SocketOptions,
        vrf: Option<&str>,
    ) -> Result<(ListenerId, Acquired), Fault> {
        let kept = request.mode().kept;
        if !kept {
            self.check_unkept(&request.endpoint)?;
        }
        // Mostly none, which is found out once.
        let overlaps = self.overlapping(&request.endpoint, &request.options).next().is_some();
        if overlaps {
            self.end_closed_at(&request.endpoint, &request.options);
        }
        if let Some(id) = self.id_at(&request.endpoint) {
            return self
                .acquire_existing(id, (owner, user), request, settings)
                .map(|acquired| (id, acquired));
        }
        self.check_capacity()?;
        if overlaps {
            self.check_overlap(&request.endpoint, &request.options, Holder::of_user(user), &[])?;
        }
        let options = options_in_vrf(&request.endpoint, &request.options, vrf);
        let bound = self.open(&request.endpoint, &options, settings, &[]).map_err(|error| {
            self.bind_fault(error, &request.endpoint, &request.options, RequestedBy::Peer)
        })?;
        let unkept = (!kept).then(|| Box::new(options.into_owned()));
        let new = NewEntry::new(request.endpoint.clone(), &request.options, bound, owner, user);
        Ok((self.insert(NewEntry { unkept, ..new }), Acquired::Bound))
    }

    fn acquire_existing(
        &mut self,
        id: ListenerId,
        (owner, user): (Owner, Option<u32>),
        request: &Listen,
        settings: &SocketOptions,
    ) -> Result<Acquired, Fault> {
        let entry =
            self.entries.get_mut(&id).ok_or_else(|| Fault::new(FaultCode::NotFound, "no such listener"))?;
        let adopted = user.filter(|user| entry.owner == Owner::Former(*user));
        if entry.owner != owner && adopted.is_none() {
            return Err(in_use(&request.endpoint, entry.owner));
        }
        if entry.bound.socket.is_none() {
            return Err(in_use_by_own_copy(&request.endpoint));
        }
        let as_requested = entry.has_options(&request.options) && entry.is_kept() == request.mode().kept;
        // A configured listener has the options of the configuration, whatever the worker requests.
        if !as_requested && entry.name.is_none() {
            let message = format!(
                "cannot listen on {}: this peer already listens there with other options",
                request.endpoint
            );
            return Err(Fault::new(FaultCode::InUse, &message)
                .subject("this peer")
                .remedy("request the same options, or stop that listener first"));
        }
        let until = entry.retained_until.take();
        let of_last_worker = until.is_some() && owner == Owner::Worker;
        if of_last_worker {
            self.reset(id, settings.backlog);
        }
        Ok(match adopted {
            Some(user) => {
                self.change_owner(id, owner);
                Acquired::Adopted(user, until)
            }
            None => Acquired::Existing(until),
        })
    }

    /// Undoes what a request acquired: a new listener stops, any other is as it was before.
    ///
    /// # Errors
    /// The kernel does not let the broker disable a new listener.
    pub fn roll_back(&mut self, id: ListenerId, acquired: Acquired) -> Result<(), Fault> {
        let until = match acquired {
            Acquired::Bound => return self.stop(id, None).map(drop),
            Acquired::Existing(until) => until,
            Acquired::Adopted(user, until) => {
                self.change_owner(id, Owner::Former(user));
                until
            }
        };
        self.entries.get_mut(&id).into_iter().for_each(|entry| entry.retained_until = until);
        Ok(())
    }

    fn change_owner(&mut self, id: ListenerId, owner: Owner) {
        if let Some(entry) = self.entries.get_mut(&id) {
            let before = std::mem::replace(&mut entry.owner, owner);
            self.subtract_from(before);
            *self.counts.entry(owner).or_default() += 1;
        }
    }
}
