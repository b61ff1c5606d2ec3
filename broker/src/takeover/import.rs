//! The successor imports everything from its predecessor. This is the last step of its start.
//!
//! Promises: everything that can fail happens before the commit. After it this broker owns everything; listeners and
//! addresses that its policy does not permit are stopped or removed, with a line in the log. A listener of a user never
//! becomes the worker's: where the configuration declares a static or floating listener, a new socket replaces the user's.

use std::cell::RefCell;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use portreeve_protocol::message::ListenerId;
use portreeve_protocol::takeover::ExportedListener;
use portreeve_protocol::{Endpoint, FaultCode};

use super::predecessor::Predecessor;
use super::replacement::{Reason, Stopping, is_permitted};
use super::request::{STEP, failed};
use crate::address::{Addresses, FloatingListeners};
use crate::config::SocketOptions;
use crate::failure::{Exit, Failure};
use crate::inject;
use crate::listener::{Configured, ImportError, Registry};
use crate::policy::{Policy, Requester};
use crate::sys::socket;

/// A static listener that could not be bound because its endpoint is in use, presumably by the predecessor.
#[derive(Debug)]
pub struct AwaitedListener {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its name.
    pub name: String,
    /// The options of its socket.
    pub socket: SocketOptions,
    /// The failure if the predecessor does not export it.
    pub in_use: Failure,
}

/// The predecessor, and the static listeners that have to come from it.
#[derive(Debug)]
pub struct Import {
    /// The predecessor.
    pub predecessor: Predecessor,
    /// The static listeners that could not be bound.
    pub awaited: Vec<AwaitedListener>,
}

/// The parts of the successor that an import fills or consults.
pub struct Target<'a> {
    /// The policy.
    pub policy: &'a RefCell<Policy>,
    /// The listeners.
    pub registry: &'a RefCell<Registry>,
    /// The addresses, if the configuration names any.
    pub addresses: Option<&'a Rc<Addresses>>,
    /// The control socket.
    pub control: Option<BorrowedFd<'a>>,
    /// Starts floating listeners.
    pub floating: &'a dyn FloatingListeners,
}

impl Import {
    /// Imports and commits. Returns the names that stopped listeners may have in the descriptor store.
    ///
    /// # Errors
    /// Something could not be imported; the predecessor still serves.
    pub fn run(&mut self, target: &Target<'_>) -> Result<Vec<String>, Failure> {
        let capacity = target.registry.borrow().capacity();
        let state = self.predecessor.read_all(capacity)?;
        let mut imported = self.import_listeners(target, state.listeners)?;
        let leases: Vec<IpAddr> = state.leases.iter().map(|lease| lease.address).collect();
        match target.addresses {
            Some(addresses) => {
                state.leases.into_iter().for_each(|lease| addresses.import_lease(lease));
                state.epochs.into_iter().for_each(|epoch| addresses.import_epoch(epoch));
            }
            None if leases.is_empty() => {}
            None => {
                let what = format!(
                    "cannot take over: the running broker leases {} addresses, and this configuration has none; the \
                     running broker still serves",
                    leases.len()
                );
                let remedy = "remove these addresses first, or restart instead of taking over";
                return Err(Failure::new(Exit::Config, STEP, what, remedy));
            }
        }
        inject::point("takeover.imported")?;
        // Connections to a new socket would be lost if the takeover failed later.
        let bound = self.bind_awaited(target, &mut imported).and_then(|()| self.predecessor.commit());
        if let Err(failure) = bound {
            target.registry.borrow().end_sharing(&imported.stopping.ids());
            return Err(failure);
        }
        let stopped = target.commit_listeners(imported);
        target.commit_addresses(&leases);
        let listeners = target.registry.borrow().count();
        tracing::info!(listeners, addresses = leases.len(), "took over from the predecessor");
        Ok(stopped)
    }

    /// Imports the listeners.
    fn import_listeners(
        &mut self,
        target: &Target<'_>,
        listeners: Vec<(ExportedListener, OwnedFd)>,
    ) -> Result<Imported, Failure> {
        let policy = target.policy.borrow();
        let mut registry = target.registry.borrow_mut();
        let (mut imported, mut of_users) = (Imported::default(), Vec::new());
        registry.renumber(listeners.last().map_or(ListenerId(0), |(listener, _)| listener.id));
        for (listener, socket) in listeners {
            let (id, user, endpoint) = (listener.id, listener.user, listener.endpoint.clone());
            let configured = match user {
                None => self.configured(&policy, &endpoint),
                Some(_) => Configured::No,
            };
            let is_static = matches!(configured, Configured::Static(_));
            let permitted = configured != Configured::No || is_permitted(&policy, &listener);
            match registry.import(listener, socket, configured) {
                Ok(()) if !permitted => imported.stopping.add(id, Reason::NotPermitted),
                Ok(()) if user.is_some() && policy.starts_with_its_address(&endpoint) => {
                    imported.stopping.add(id, Reason::Floating);
                }
                Ok(()) if user.is_some() => of_users.push(id),
                Ok(()) if is_static => self.awaited.retain(|awaited| awaited.endpoint != endpoint),
                Ok(()) => {}
                // Its holder did that, and must not be able to prevent the takeover.
                Err(ImportError::Mismatch(endpoint)) => imported.unusable.push((endpoint, user)),
                Err(error) => {
                    let remedy = "restart the running broker instead of taking over";
                    return Err(Failure::new(Exit::Unavailable, STEP, error, remedy));
                }
            }
        }
        for id in of_users.into_iter().filter(|id| registry.is_shared_with_another_holder(*id)) {
            imported.stopping.add(id, Reason::Overlap);
        }
        Ok(imported)
    }

    /// How the configuration declares a listener of the worker.
    fn configured(&self, policy: &Policy, endpoint: &Endpoint) -> Configured {
        if let Some(awaited) = self.awaited.iter().find(|awaited| awaited.endpoint == *endpoint) {
            return Configured::Static(awaited.name.clone());
        }
        let floating = endpoint.inet().into_iter().flat_map(|inet| policy.listeners_at(inet.address));
        let mut floating = floating.filter(|listener| listener.endpoint == endpoint);
        floating.next().map_or(Configured::No, |listener| Configured::Floating(listener.name.to_owned()))
    }

    /// Binds the static listeners that the worker of the predecessor does not have, beside those that are in the way and stop
    /// after the commit.
    fn bind_awaited(&mut self, target: &Target<'_>, imported: &mut Imported) -> Result<(), Failure> {
        let mut registry = target.registry.borrow_mut();
        for awaited in self.awaited.drain(..) {
            let AwaitedListener { endpoint, name, socket, .. } = &awaited;
            for id in registry.users_at(endpoint) {
                imported.stopping.add(id, Reason::Static);
            }
            let closing = imported.stopping.ids();
            let unusable = imported.unusable.iter().any(|(other, _)| path(other) == path(endpoint));
            if path(endpoint).is_some() && (unusable || registry.is_occupied_by(endpoint, &closing)) {
                imported.deferred.push(awaited);
                continue;
            }
            if let Err(fault) = registry.bind_static(endpoint, socket, name, &closing, None) {
                if socket.optional {
                    registry.go_on_without(endpoint, &fault.message);
                    continue;
                }
                let by_this_broker = registry.is_occupied(endpoint);
                return Err(match fault.code {
                    FaultCode::InUse if !by_this_broker => awaited.in_use,
                    _ => failed(&*fault.message, &*fault.remedy),
                });
            }
        }
        Ok(())
    }
}

/// The path of a Unix socket.
fn path(endpoint: &Endpoint) -> Option<&str> {
    match endpoint {
        Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path) => Some(path),
        Endpoint::Tcp(_) | Endpoint::Udp(_) => None,
    }
}

/// The listeners that need more than an import.
#[derive(Debug, Default)]
struct Imported {
    /// Those that stop after the commit.
    stopping: Stopping,
    /// Those whose sockets are not listeners any more, with the user.
    unusable: Vec<(Endpoint, Option<u32>)>,
    /// Static Unix listeners, which can be bound when the one that has their path has stopped.
    deferred: Vec<AwaitedListener>,
}

impl Target<'_> {
    /// Takes ownership of the listeners, stops those that do not stay, and binds the rest of the static ones.
    fn commit_listeners(&self, imported: Imported) -> Vec<String> {
        let mut registry = self.registry.borrow_mut();
        registry.commit_import();
        // From now on the kernel reports this process as the peer to processes that connect.
        if let Some(control) = self.control
            && let Err(errno) = socket::listen(control, socket::CONTROL_BACKLOG)
        {
            tracing::warn!(error = %errno, "the kernel still reports the predecessor as the owner of the control socket");
        }
        for (endpoint, user) in imported.unusable {
            tracing::warn!(
                target: "audit", %endpoint, user, "closed a listener of the predecessor: its holder has connected its socket \
                or shut it down"
            );
        }
        let stopped = imported.stopping.stop(&mut registry);
        for AwaitedListener { endpoint, name, socket, .. } in imported.deferred {
            if let Err(fault) = registry.bind_static(&endpoint, &socket, &name, &[], None) {
                tracing::error!(%endpoint, name, error = %fault, "a static listener is missing: restart portreeved");
            }
        }
        stopped
    }

    /// Takes ownership of the addresses, removes those that the policy denies, and starts the floating listeners of the
    /// others.
    fn commit_addresses(&self, leases: &[IpAddr]) {
        let Some(addresses) = self.addresses else { return };
        addresses.commit_import();
        let (permitted, denied): (Vec<IpAddr>, Vec<IpAddr>) = {
            let policy = self.policy.borrow();
            leases.iter().partition(|address| policy.allows_address(&Requester::Worker, **address))
        };
        for outcome in addresses.remove(&denied) {
            match outcome {
                Ok(removed) => tracing::warn!(
                    target: "audit", address = %removed.address, "removed an address that is no longer permitted"
                ),
                Err(fault) => {
                    tracing::error!(error = %fault, "cannot remove an address that is no longer permitted");
                }
            }
        }
        for address in permitted {
            if let Err(fault) = self.floating.start(address) {
                tracing::error!(%address, error = %fault, "cannot start a floating listener");
            }
        }
    }
}
