//! Stop: disables listeners, for every process that holds a copy of their sockets.

use std::borrow::Cow;
use std::fmt;

use portreeve_protocol::message::{ListenerId, Stop, Stopped};
use portreeve_protocol::{Fault, FaultCode, List};

use super::Done;
use super::handler::{Handler, Immediate, Part};
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

    fn parts<'r>(&self, reply: &'r Stopped) -> Option<Vec<Part<'r>>> {
        let unknown = reply
            .unknown
            .iter()
            .map(|id| Fault::new(FaultCode::NotFound, &format!("this peer has no listener {}", id.0)));
        let not_revoked = reply.not_revoked.iter().map(|id| {
            Fault::new(
                FaultCode::Os,
                &format!("the listener {} is stopped, but copies of it may still be open", id.0),
            )
        });
        let refused = unknown.chain(not_revoked).map(|fault| Part::Refused(Cow::Owned(fault)));
        let done = self.listeners.len().saturating_sub(reply.unknown.len() + reply.not_revoked.len());
        Some((0..done).map(|_| Part::Done).chain(refused).collect())
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
                        tracing::error!(session = session.number, error = %fault, "cannot revoke a listener that a peer stopped");
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
