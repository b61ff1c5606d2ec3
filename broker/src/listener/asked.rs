//! Listeners that peers ask for: bound, there already, or adopted; and taken back where a request fails after all.
//!
//! Promises: a request that is refused changes nobody's listener.

use std::time::Instant;

use portreeve_protocol::message::{Listen, ListenerId};
use portreeve_protocol::{Fault, FaultCode};

use super::bind::bind;
use super::entry::Owner;
use super::registry::{Registry, in_use};
use crate::config::SocketOptions;

/// How a peer came by the listener that it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It was bound for this request.
    New,
    /// The peer had it, or it was kept for its successor, until then.
    There(Option<Instant>),
    /// It was kept for this user, until then.
    Adopted(u32, Option<Instant>),
}

impl Registry {
    /// Gives the owner's listener at this endpoint, or what is kept there for its user, or binds one; tells which.
    pub fn listen(
        &mut self,
        owner: Owner,
        user: Option<u32>,
        request: &Listen,
        settings: &SocketOptions,
    ) -> Result<(ListenerId, Came), Fault> {
        if let Some(id) = self.by_endpoint.get(&request.endpoint).copied() {
            return self.listen_again(id, owner, user, request).map(|came| (id, came));
        }
        self.room()?;
        let bound = bind(&self.directories, &request.endpoint, &request.options, settings)
            .map_err(|error| self.name_owner(error, &request.endpoint))?;
        Ok((self.insert(request.endpoint.clone(), &request.options, bound, owner, None), Came::New))
    }

    fn listen_again(
        &mut self,
        id: ListenerId,
        owner: Owner,
        user: Option<u32>,
        request: &Listen,
    ) -> Result<Came, Fault> {
        let entry =
            self.entries.get_mut(&id).ok_or_else(|| Fault::new(FaultCode::NotFound, "no listener"))?;
        let kept = user.filter(|user| entry.owner == Owner::Former(*user));
        if entry.owner != owner && kept.is_none() {
            return Err(in_use(&request.endpoint, entry.owner));
        }
        // What the configuration starts is as it says, whatever the worker would have asked for.
        if !entry.was_asked_with(&request.options) && entry.name.is_none() {
            let message = format!("{} listens already, with other options", request.endpoint);
            return Err(Fault::new(FaultCode::InUse, &message)
                .subject("this peer")
                .remedy("ask with the same options, and stop it first to have others"));
        }
        let until = entry.retained_until.take();
        Ok(match kept {
            Some(user) => {
                self.pass(id, owner);
                Came::Adopted(user, until)
            }
            None => Came::There(until),
        })
    }

    /// Takes back what a request came by that is refused after all.
    pub fn take_back(&mut self, id: ListenerId, came: Came) -> Result<(), Fault> {
        let until = match came {
            Came::New => return self.stop(id, None).map(drop),
            Came::There(until) => until,
            Came::Adopted(user, until) => {
                self.pass(id, Owner::Former(user));
                until
            }
        };
        self.entries.get_mut(&id).into_iter().for_each(|entry| entry.retained_until = until);
        Ok(())
    }

    fn pass(&mut self, id: ListenerId, to: Owner) {
        if let Some(entry) = self.entries.get_mut(&id) {
            let from = std::mem::replace(&mut entry.owner, to);
            self.uncount(from);
            *self.counts.entry(to).or_default() += 1;
        }
    }
}
