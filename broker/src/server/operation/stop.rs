//! Stop: listeners are taken out of service, for whoever holds a copy of their sockets too.

use std::fmt;

use portreeve_protocol::message::{ListenerId, Stop, Stopped};
use portreeve_protocol::{Fault, List};

use super::Done;
use super::audit::Arguments;
use crate::server::session::Session;
use crate::server::state::Broker;

impl Arguments for Stop {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.listeners.iter().enumerate().try_for_each(|(index, id)| {
            let separator = if index == 0 { "" } else { ", " };
            write!(out, "{separator}{}", id.0)
        })
    }
}

pub fn stop(broker: &Broker, session: &Session, request: &Stop) -> Result<Done<Stopped>, Fault> {
    let mut registry = broker.registry.borrow_mut();
    // Root may stop what is not its own: it is the operator.
    let owner = if session.is_root() { None } else { Some(session.owner) };
    let mut unknown: Vec<ListenerId> = Vec::new();
    for id in request.listeners.iter() {
        if !registry.stop(*id, owner)? {
            unknown.push(*id);
        }
    }
    Ok(Done::new(Stopped { unknown: List::truncated(unknown) }))
}
