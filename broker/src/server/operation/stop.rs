//! Stop: disables listeners, for every process that holds a copy of their sockets.

use std::fmt;

use portreeve_protocol::message::{ListenerId, Stop, Stopped};
use portreeve_protocol::{Fault, List};

use super::Done;
use super::handler::{Handler, Immediate};
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::Broker;

impl Handler for Stop {
    const CHANGES_STATE: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.listeners.iter().enumerate().try_for_each(|(index, id)| {
            let separator = if index == 0 { "" } else { ", " };
            write!(out, "{separator}{}", id.0)
        })
    }
}

impl Immediate for Stop {
    fn act(&self, _: &OperationPermit, broker: &Broker, session: &Session) -> Result<Done<Stopped>, Fault> {
        let mut registry = broker.registry.borrow_mut();
        // User 0 is allowed to stop every listener, because it is the operator.
        let owner = if session.is_root() { None } else { Some(session.owner) };
        let (mut unknown, mut not_revoked): (Vec<ListenerId>, Vec<ListenerId>) = Default::default();
        for id in self.listeners.iter() {
            match registry.stop(*id, owner) {
                Ok(true) => {}
                Ok(false) => unknown.push(*id),
                Err(fault) => {
                    session.account.record(|| {
                        tracing::error!(session = session.number, %fault, "cannot revoke a listener that a peer stopped");
                    });
                    not_revoked.push(*id);
                }
            }
        }
        Ok(Done::new(Stopped {
            unknown: List::truncated(unknown),
            not_revoked: List::truncated(not_revoked),
        }))
    }
}
