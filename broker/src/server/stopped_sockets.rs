//! Checks whether the former holder of a stopped listener misuses its copy of the socket, and closes the broker's copy.

use std::rc::Rc;
use std::time::Instant;

use super::state::Broker;
use crate::log;

/// Checks the sockets of stopped listeners when they are due.
pub async fn check_loop(broker: Rc<Broker>) {
    let added = broker.registry.borrow_mut().stopped_sockets().added();
    loop {
        let Some(check_at) = broker.registry.borrow_mut().stopped_sockets().next_check() else {
            added.notified().await;
            continue;
        };
        tokio::time::sleep_until(check_at.into()).await;
        let misused = broker.registry.borrow_mut().stopped_sockets().check(Instant::now());
        for (endpoint, holder) in misused {
            tracing::warn!(
                target: "audit", %endpoint, holder = %log::named(holder),
                "a peer uses its copy of the socket of a stopped listener; it receives nothing, and others can listen there"
            );
        }
    }
}
