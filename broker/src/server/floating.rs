//! Floating listeners: bound before their address is announced, stopped before it is removed.
//!
//! Promises: all floating listeners of an address start, or none does; no listener of any kind stays at a removed address.
//! The worker gets an event for each of its listeners.

use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Endpoint, Event, EventCode, Fault, Text};

use super::state::Broker;
use crate::address::FloatingListeners;
use crate::events::Audience;
use crate::holder::Holder;
use crate::listener::Owner;

impl FloatingListeners for Broker {
    fn start(&self, address: IpAddr) -> Result<(), Fault> {
        let policy = self.policy.borrow();
        for listener in policy.listeners_at(address) {
            let (endpoint, name) = (listener.endpoint, listener.name);
            let vrf = self.vrf_at(endpoint);
            let mut registry = self.registry.borrow_mut();
            let bound = registry.bind_floating(endpoint, listener.socket, name, vrf.as_deref())?;
            drop(registry);
            if let Some(id) = bound {
                tracing::info!(target: "audit", %endpoint, name, "started a floating listener with its address");
                self.publish_to_worker(EventCode::ListenerStarted, id, endpoint);
            }
        }
        Ok(())
    }

    fn stop(&self, addresses: &[IpAddr]) {
        let addresses: HashSet<IpAddr> = addresses.iter().copied().collect();
        let of_worker: Vec<(ListenerId, Rc<Endpoint>)> = {
            let registry = self.registry.borrow();
            let at_address =
                |endpoint: &Endpoint| endpoint.inet().is_some_and(|inet| addresses.contains(&inet.address));
            registry
                .iter_after(ListenerId(0))
                .filter(|(_, entry)| entry.owner == Owner::Worker && at_address(&entry.endpoint))
                .map(|(id, entry)| (id, entry.endpoint.clone()))
                .collect()
        };
        for (id, endpoint) in &of_worker {
            self.publish_to_worker(EventCode::ListenerStopping, *id, endpoint);
        }
        for fault in self.registry.borrow_mut().stop_at(&addresses) {
            tracing::error!(error = %fault, "cannot revoke a listener whose address is about to be removed");
        }
    }

    fn change_vrf(&self, addresses: &HashSet<IpAddr>, vrf: Option<&str>) {
        for fault in self.registry.borrow().change_vrf(addresses, vrf) {
            tracing::warn!(error = %fault, "cannot bind a listener to the VRF of its address");
        }
    }
}

impl Broker {
    /// The name of the VRF of an endpoint's address, if the address is leased.
    pub(super) fn vrf_at(&self, endpoint: &Endpoint) -> Option<Text<15>> {
        self.addresses.as_ref()?.vrf_of(endpoint.inet()?.address)
    }

    /// Publishes to the worker that the broker started or stopped one of its listeners.
    pub(super) fn publish_to_worker(&self, code: EventCode, id: ListenerId, endpoint: &Endpoint) {
        let event = Event {
            code,
            address: endpoint.inet().map(|inet| inet.address),
            count: id.0,
            detail: Text::truncated(&endpoint.to_string()),
            ..Event::default()
        };
        self.events.publish(Audience::Holder(Holder::Worker), event);
    }
}
