//! Listeners that go while clients come: no new connection begins, those that were begun are accepted, then it ends.
//!
//! Promises: a connection that was made before is not reset as long as its worker accepts it in time, and another
//! listener can be bound in the same place meanwhile. Sources: tcp(7) for TCP_INFO, socket(7), net/ipv4/tcp_ipv4.c for
//! what a filter of a listening socket sees.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use portreeve_protocol::message::{ListenOptions, ListenerId};
use portreeve_protocol::{Endpoint, Fault};

use super::bind::{BindError, bind};
use super::entry::{Entry, Owner};
use super::registry::Registry;
use crate::config::SocketOptions;

/// How long a handshake that was begun may take to be over.
const HANDSHAKE: Duration = Duration::from_millis(100);
/// How long a worker may take to accept what waits.
const LONGEST: Duration = Duration::from_secs(2);
/// Between two looks at the queue.
const LOOK: Duration = Duration::from_millis(20);

/// A listener that nobody can ask for any more.
#[derive(Debug)]
pub struct Leaving(Box<Entry>);

impl Leaving {
    /// Waits until the worker has accepted what was there, for so long and no longer.
    pub async fn drained(&self) {
        if !matches!(*self.0.endpoint, Endpoint::Tcp(_)) {
            return;
        }
        tokio::time::sleep(HANDSHAKE).await;
        let mut left = LONGEST;
        while !left.is_zero()
            && crate::sys::sockopt::accept_queue(&self.0.bound.socket).is_ok_and(|waiting| waiting > 0)
        {
            tokio::time::sleep(LOOK).await;
            left = left.saturating_sub(LOOK);
        }
    }
}

impl Registry {
    /// The number of the listener at an endpoint.
    pub fn id_at(&self, endpoint: &Endpoint) -> Option<ListenerId> {
        self.by_endpoint.get(endpoint).copied()
    }

    /// Whose the listener at an endpoint is.
    pub fn owner_at(&self, endpoint: &Endpoint) -> Option<Owner> {
        Some(self.entry(self.id_at(endpoint)?)?.owner)
    }

    /// A listener.
    pub fn entry(&self, id: ListenerId) -> Option<&Entry> {
        self.entries.get(&id).map(|entry| &**entry)
    }

    /// The numbers of all that the owner has.
    pub fn ids_of(&self, owner: Owner) -> Vec<ListenerId> {
        self.entries.iter().filter(|(_, entry)| entry.owner == owner).map(|(id, _)| *id).collect()
    }

    /// Makes a listener of the worker static under this name, or one that goes with its address, or its own.
    pub fn rename(&mut self, id: ListenerId, name: Option<&str>, moves: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.name = name.map(Into::into);
            entry.retained_until = None;
            if std::mem::replace(&mut entry.moves, moves) != moves {
                self.changed(id);
            }
        }
    }

    /// Binds a static listener while others listen, also where these stand in its way, as long as they are `leaving`.
    pub fn open_static(
        &mut self,
        endpoint: &Endpoint,
        settings: &SocketOptions,
        name: &str,
        leaving: &[ListenerId],
    ) -> Result<ListenerId, Fault> {
        self.room()?;
        let options = ListenOptions::default();
        let bound = bind(&self.directories, endpoint, &options, settings).or_else(|error| {
            if error.errno != nix::errno::Errno::EADDRINUSE || endpoint.inet().is_none() {
                return Err(error);
            }
            // Two sockets may stand in the same place when both say so, the one that is bound already too.
            for entry in leaving.iter().filter_map(|id| self.entries.get(id)) {
                share(&entry.bound.socket, true).map_err(|errno| BindError { call: "setsockopt", errno })?;
            }
            let sharing = ListenOptions { reuse_port: true, ..options.clone() };
            let bound = bind(&self.directories, endpoint, &sharing, settings)?;
            share(&bound.socket, false).map_err(|errno| BindError { call: "setsockopt", errno })?;
            Ok(bound)
        });
        let bound = bound.map_err(|error| self.name_owner(error, endpoint))?;
        Ok(self.insert(endpoint.clone(), &options, bound, Owner::Worker, Some(name.into())))
    }

    /// Takes a listener out of the registry: its owner may accept what waits in it, and no more comes.
    pub fn retire(&mut self, id: ListenerId) -> Result<Leaving, Fault> {
        let Some(entry) = self.take(id) else {
            return Err(Fault::new(portreeve_protocol::FaultCode::NotFound, "no listener"));
        };
        if entry.endpoint.inet().is_some() {
            // Whichever of these a kernel refuses, the listener ends all the same, with less grace.
            let _less_grace = share(&entry.bound.socket, true);
            if matches!(*entry.endpoint, Endpoint::Tcp(_)) {
                let _less_grace = crate::sys::sockopt::attach_drop_syn(&entry.bound.socket);
            }
        }
        Ok(Leaving(entry))
    }

    /// Ends it.
    pub fn end(&self, Leaving(entry): Leaving) -> Result<(), Fault> {
        self.filter
            .end(&entry.bound.socket)
            .map_err(|errno| BindError { call: "taking it out of service", errno }.fault(&entry.endpoint))
    }

    /// Gives a socket that listens other options; the error tells those that only a new socket takes.
    pub fn adjust(&self, id: ListenerId, settings: &SocketOptions) -> Result<(), String> {
        let Some(entry) = self.entries.get(&id) else {
            return Ok(());
        };
        entry.bound.adjust(&entry.endpoint, settings)
    }
}

/// SO_REUSEPORT of a socket, bound or not.
fn share(socket: &OwnedFd, shared: bool) -> nix::Result<()> {
    setsockopt(&socket.as_fd(), sockopt::ReusePort, &shared)
}
