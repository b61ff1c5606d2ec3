//! Succeeding another broker: what it held becomes this one's, at the last step of the start.
//!
//! Promises: all that can fail comes before the other broker is told to leave; from then on everything is this one's,
//! and what the policy of this one does not permit is given up with a line in the log.

use std::net::IpAddr;

use nix::sys::socket::{Backlog, listen};
use portreeve_protocol::message::{Listen, ListenerId};
use portreeve_protocol::takeover::HandedListener;
use portreeve_protocol::{Endpoint, Fault};

use super::operation::listen_permit;
use super::state::Broker;
use crate::address::FloatingListeners as _;
use crate::failure::{Exit, Failure};
use crate::inject;
use crate::listener::handed::Named;
use crate::policy::{Policy, Requester};
use crate::takeover::Predecessor;

const STEP: &str = "takeover";

/// A static listener whose endpoint is taken: by the other broker, it is to be hoped.
#[derive(Debug)]
pub struct Awaited {
    /// Where it is to listen.
    pub endpoint: Endpoint,
    /// Its name.
    pub name: String,
    /// What to say where the other broker does not have it.
    pub taken: Failure,
}

/// The other broker, and what of it is awaited.
#[derive(Debug)]
pub struct Succession {
    /// The other broker.
    pub predecessor: Predecessor,
    /// The static listeners that it has.
    pub awaited: Vec<Awaited>,
}

impl Succession {
    /// Takes everything over.
    ///
    /// # Errors
    /// It could not be had, and the other broker serves as before.
    pub fn take(&mut self, broker: &Broker) -> Result<(), Failure> {
        let capacity = broker.registry.borrow().capacity();
        let held = self.predecessor.everything(capacity)?;
        let outside = self.take_listeners(broker, held.listeners)?;
        if let Some(awaited) = self.awaited.pop() {
            return Err(awaited.taken);
        }
        let leases: Vec<IpAddr> = held.leases.iter().map(|lease| lease.address).collect();
        match &broker.addresses {
            Some(addresses) => {
                held.leases.into_iter().for_each(|lease| addresses.import_lease(lease));
                held.epochs.into_iter().for_each(|past| addresses.import_epoch(past));
            }
            None if leases.is_empty() => {}
            None => {
                let what = format!("{} addresses are leased, and this configuration has none", leases.len());
                let remedy = "have them removed first, or restart instead";
                return Err(Failure::new(Exit::Config, STEP, what, remedy));
            }
        }
        inject::point("takeover.taken")?;
        self.predecessor.confirm()?;
        own(broker, &outside, &leases);
        Ok(())
    }

    /// Takes listeners in, and gives the numbers of those that this policy does not permit.
    fn take_listeners(
        &mut self,
        broker: &Broker,
        listeners: Vec<(HandedListener, std::os::fd::OwnedFd)>,
    ) -> Result<Vec<ListenerId>, Failure> {
        let policy = broker.policy.borrow();
        let mut registry = broker.registry.borrow_mut();
        let mut outside = Vec::new();
        registry.renumber(listeners.last().map_or(ListenerId(0), |(listener, _)| listener.id));
        for (listener, socket) in listeners {
            let named = self.named(&policy, &listener.endpoint);
            if named == Named::No && permit(&policy, &listener).is_err() {
                outside.push(listener.id);
            }
            registry
                .take_in(listener, socket, named)
                .map_err(|error| Failure::new(Exit::Unavailable, STEP, error, "restart instead"))?;
        }
        Ok(outside)
    }

    fn named(&mut self, policy: &Policy, endpoint: &Endpoint) -> Named {
        if let Some(at) = self.awaited.iter().position(|awaited| awaited.endpoint == *endpoint) {
            return Named::Static(self.awaited.swap_remove(at).name);
        }
        let moving = endpoint.inet().into_iter().flat_map(|inet| policy.listeners_at(inet.address));
        let mut moving = moving.filter(|listener| listener.endpoint == endpoint);
        moving.next().map_or(Named::No, |listener| Named::Moves(listener.name.to_owned()))
    }
}

/// What the worker, or any user, may listen on: a session that adopts it is asked for its own permit then.
fn permit(policy: &Policy, listener: &HandedListener) -> Result<(), Fault> {
    let listen = Listen { endpoint: listener.endpoint.clone(), options: listener.options.clone() };
    listen_permit(policy, &Requester::Worker, &listen).map(drop)
}

/// Makes everything this broker's own.
fn own(broker: &Broker, outside: &[ListenerId], leases: &[IpAddr]) {
    broker.registry.borrow_mut().own();
    // So that the kernel names this process to those who connect.
    if let Some(control) = &broker.handover.control
        && let Err(errno) = listen(control, Backlog::MAXCONN)
    {
        tracing::warn!(%errno, "the control socket names the broker before as its owner");
    }
    for id in outside {
        let mut registry = broker.registry.borrow_mut();
        let endpoint = registry.endpoint(*id).map(Endpoint::to_string);
        match registry.stop(*id, None) {
            Ok(_) => {
                tracing::warn!(target: "audit", endpoint, "no longer permitted: the listener is stopped")
            }
            Err(fault) => tracing::error!(%fault, "a listener that is not permitted could not be stopped"),
        }
    }
    if let Some(addresses) = &broker.addresses {
        addresses.commit_import();
        let policy = broker.policy.borrow();
        let (kept, lost): (Vec<IpAddr>, Vec<IpAddr>) =
            leases.iter().partition(|address| policy.may_come(&Requester::Worker, **address));
        drop(policy);
        for outcome in addresses.remove(&lost) {
            match outcome {
                Ok(gone) => {
                    tracing::warn!(target: "audit", address = %gone.address, "no longer permitted: the address is removed");
                }
                Err(fault) => {
                    tracing::error!(%fault, "an address that is not permitted could not be removed")
                }
            }
        }
        for address in kept {
            if let Err(fault) = broker.start(address) {
                tracing::error!(%address, %fault, "a listener of an address could not be started");
            }
        }
    }
    let listeners = broker.registry.borrow().count();
    tracing::info!(listeners, addresses = leases.len(), "took over from the broker before");
}
