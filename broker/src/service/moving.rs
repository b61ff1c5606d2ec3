//! Listeners that come and go with their address: bound before its neighbours are told, stopped before it leaves.
//!
//! Promises: of one address all such listeners start or none does; none of any kind is left at an address that goes.

use std::collections::HashSet;
use std::net::IpAddr;

use portreeve_protocol::Fault;

use super::state::Broker;
use crate::address::Listeners;

impl Listeners for Broker {
    fn start(&self, address: IpAddr) -> Result<(), Fault> {
        let policy = self.policy.borrow();
        for listener in policy.listeners_at(address) {
            let mut registry = self.registry.borrow_mut();
            registry.bind_moving(listener.endpoint, listener.socket, listener.name)?;
            let (endpoint, name) = (listener.endpoint, listener.name);
            tracing::info!(target: "audit", %endpoint, name, "a listener started with its address");
        }
        Ok(())
    }

    fn stop(&self, addresses: &[IpAddr]) {
        let addresses: HashSet<IpAddr> = addresses.iter().copied().collect();
        for fault in self.registry.borrow_mut().stop_at(&addresses) {
            tracing::error!(%fault, "a listener at an address that goes could not be stopped");
        }
    }
}
