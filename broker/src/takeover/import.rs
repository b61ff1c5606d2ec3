//! The successor imports everything from its predecessor. This is the last step of its start.
//!
//! Promises: everything that can fail happens before the commit. After it this broker owns everything; listeners and
//! addresses that its policy does not permit are stopped or removed, with a line in the log.

use std::cell::RefCell;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::{Listen, ListenerId};
use portreeve_protocol::takeover::ExportedListener;

use super::predecessor::Predecessor;
use super::request::STEP;
use crate::address::{Addresses, FloatingListeners};
use crate::failure::{Exit, Failure};
use crate::inject;
use crate::listener::{Configured, Registry};
use crate::policy::{Policy, Requester};
use crate::sys::socket;

/// A static listener that could not be bound because its endpoint is in use, presumably by the predecessor.
#[derive(Debug)]
pub struct AwaitedListener {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its name.
    pub name: String,
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
    /// Imports and commits.
    ///
    /// # Errors
    /// Something could not be imported; the predecessor still serves.
    pub fn run(&mut self, target: &Target<'_>) -> Result<(), Failure> {
        let capacity = target.registry.borrow().capacity();
        let state = self.predecessor.read_all(capacity)?;
        let denied = self.import_listeners(target, state.listeners)?;
        if let Some(awaited) = self.awaited.pop() {
            return Err(awaited.in_use);
        }
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
        self.predecessor.commit()?;
        target.commit_listeners(&denied);
        target.commit_addresses(&leases);
        let listeners = target.registry.borrow().count();
        tracing::info!(listeners, addresses = leases.len(), "took over from the predecessor");
        Ok(())
    }

    /// Imports the listeners and returns the numbers of those that the policy does not permit.
    fn import_listeners(
        &mut self,
        target: &Target<'_>,
        listeners: Vec<(ExportedListener, OwnedFd)>,
    ) -> Result<Vec<ListenerId>, Failure> {
        let policy = target.policy.borrow();
        let mut registry = target.registry.borrow_mut();
        let mut denied = Vec::new();
        registry.renumber(listeners.last().map_or(ListenerId(0), |(listener, _)| listener.id));
        for (listener, socket) in listeners {
            let configured = self.configured(&policy, &listener.endpoint);
            if configured == Configured::No && !is_permitted(&policy, &listener) {
                denied.push(listener.id);
            }
            registry.import(listener, socket, configured).map_err(|error| {
                Failure::new(
                    Exit::Unavailable,
                    STEP,
                    error,
                    "restart the running broker instead of taking over",
                )
            })?;
        }
        Ok(denied)
    }

    fn configured(&mut self, policy: &Policy, endpoint: &Endpoint) -> Configured {
        if let Some(position) = self.awaited.iter().position(|awaited| awaited.endpoint == *endpoint) {
            return Configured::Static(self.awaited.swap_remove(position).name);
        }
        let floating = endpoint.inet().into_iter().flat_map(|inet| policy.listeners_at(inet.address));
        let mut floating = floating.filter(|listener| listener.endpoint == endpoint);
        floating.next().map_or(Configured::No, |listener| Configured::Floating(listener.name.to_owned()))
    }
}

/// Whether the policy permits the listener to the worker, which is allowed at least what any user is. The session that
/// adopts it needs a permit of its own.
fn is_permitted(policy: &Policy, listener: &ExportedListener) -> bool {
    let listen = Listen { endpoint: listener.endpoint.clone(), options: listener.options.clone() };
    policy.listen_request(&Requester::Worker, &listen).is_ok()
}

impl Target<'_> {
    /// Takes ownership of the listeners, and stops those that the policy denies.
    fn commit_listeners(&self, denied: &[ListenerId]) {
        let mut registry = self.registry.borrow_mut();
        registry.commit_import();
        // From now on the kernel reports this process as the peer to processes that connect.
        if let Some(control) = self.control
            && let Err(errno) = socket::listen(control, socket::MAX_BACKLOG)
        {
            tracing::warn!(%errno, "the kernel still reports the predecessor as the owner of the control socket");
        }
        for id in denied {
            let endpoint = registry.entry(*id).map(|entry| entry.endpoint.to_string());
            match registry.stop(*id, None) {
                Ok(_) => {
                    tracing::warn!(target: "audit", endpoint, "stopped a listener that is no longer permitted");
                }
                Err(fault) => {
                    tracing::error!(%fault, "cannot stop a listener that is no longer permitted");
                }
            }
        }
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
                    tracing::error!(%fault, "cannot remove an address that is no longer permitted");
                }
            }
        }
        for address in permitted {
            if let Err(fault) = self.floating.start(address) {
                tracing::error!(%address, %fault, "cannot start a floating listener");
            }
        }
    }
}
