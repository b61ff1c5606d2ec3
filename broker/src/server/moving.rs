//! Listeners that come and go with their address: bound before its neighbours are told, stopped before it leaves.
//!
//! Promises: of one address all such listeners start or none does; none of any kind is left at an address that goes. The
//! worker is told of each that is its own.

use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Endpoint, Event, EventCode, Fault, Text};

use super::state::Broker;
use crate::address::FloatingListeners;
use crate::events::Concern;
use crate::holder::Holder;
use crate::listener::Owner;

impl FloatingListeners for Broker {
    fn start(&self, address: IpAddr) -> Result<(), Fault> {
        let policy = self.policy.borrow();
        for listener in policy.listeners_at(address) {
            let (endpoint, name) = (listener.endpoint, listener.name);
            let bound = self.registry.borrow_mut().bind_moving(endpoint, listener.socket, name)?;
            if let Some(id) = bound {
                tracing::info!(target: "audit", %endpoint, name, "a listener started with its address");
                self.tell_worker(EventCode::ListenerStarted, id, endpoint);
            }
        }
        Ok(())
    }

    fn stop(&self, addresses: &[IpAddr]) {
        let addresses: HashSet<IpAddr> = addresses.iter().copied().collect();
        let workers: Vec<(ListenerId, Rc<Endpoint>)> = {
            let registry = self.registry.borrow();
            let here =
                |endpoint: &Endpoint| endpoint.inet().is_some_and(|inet| addresses.contains(&inet.address));
            let found = registry.after(ListenerId(0)).filter(|(_, entry)| entry.owner == Owner::Worker);
            found
                .filter(|(_, entry)| here(&entry.endpoint))
                .map(|(id, entry)| (id, entry.endpoint.clone()))
                .collect()
        };
        for (id, endpoint) in &workers {
            self.tell_worker(EventCode::ListenerStopping, *id, endpoint);
        }
        for fault in self.registry.borrow_mut().stop_at(&addresses) {
            tracing::error!(%fault, "a listener at an address that goes could not be stopped");
        }
    }
}

impl Broker {
    /// Tells the worker of a listener of its own that came or goes by itself.
    pub(super) fn tell_worker(&self, code: EventCode, id: ListenerId, endpoint: &Endpoint) {
        let event = Event {
            code,
            address: endpoint.inet().map(|inet| inet.address),
            count: id.0,
            detail: Text::clipped(&endpoint.to_string()),
            ..Event::default()
        };
        self.events.tell(Concern::Holder(Holder::Worker), event);
    }
}
