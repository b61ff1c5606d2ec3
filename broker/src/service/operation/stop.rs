//! Stop: listeners are taken out of service, for whoever holds a copy of their sockets too.

use portreeve_protocol::message::{ListenerId, Stop, Stopped};
use portreeve_protocol::{Fault, List};

use super::Done;
use crate::service::session::Session;
use crate::service::state::Broker;

pub fn stop(broker: &Broker, session: &Session, request: &Stop) -> Result<Done<Stopped>, Fault> {
    let mut registry = broker.registry.borrow_mut();
    // Root may stop what is not its own: it is the operator.
    let owner = if session.is_root() {
        None
    } else {
        Some(session.owner)
    };
    let mut unknown: Vec<ListenerId> = Vec::new();
    for id in request.listeners.iter() {
        if !registry.stop(*id, owner)? {
            unknown.push(*id);
        }
    }
    Ok(Done::new(Stopped {
        unknown: List::first_of(unknown),
    }))
}
