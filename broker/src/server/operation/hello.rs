//! Hello: a peer gives its name and learns which operations it may use. Once in a session: only the worker may send it again,
//! because a program that the worker executes can take over its channel.

use std::fmt;

use portreeve_protocol::message::{Hello, Welcome};
use portreeve_protocol::{Fault, FaultCode, List, Text};

use super::Done;
use super::handler::{Handler, Immediate};
use crate::config::GROUPS;
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::{Broker, RELEASE};

impl Handler for Hello {
    const CHANGES_STATE: bool = false;
    const FREQUENT: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.client)
    }
}

impl Immediate for Hello {
    fn act(&self, _: &OperationPermit, broker: &Broker, session: &Session) -> Result<Done<Welcome>, Fault> {
        if session.is_greeted() && !session.is_worker() {
            return Err(Fault::new(FaultCode::Malformed, "this session has sent hello already")
                .remedy("send it once, as the first request of a session"));
        }
        session.greet(self.features);
        if let Some(info) = broker.sessions.borrow_mut().get_mut(&session.number) {
            info.client = self.client.clone();
        }
        let policy = broker.policy.borrow();
        let operations = policy.operations(&session.requester).into_iter();
        let operations = operations.filter(|name| broker.addresses.is_some() || !needs_addresses(name));
        Ok(Done::new(Welcome {
            broker: std::process::id(),
            release: Text::truncated(RELEASE),
            features: session.features(),
            capabilities: broker.processes.broker.credentials.effective,
            peer: Text::truncated(&session.requester.to_string()),
            operations: List::truncated(operations.map(Text::truncated)),
        }))
    }
}

/// Whether only a broker that manages addresses and interfaces can serve an operation.
fn needs_addresses(operation: &str) -> bool {
    let groups = GROUPS.iter().filter(|(word, _)| ["address", "link"].contains(word));
    groups.into_iter().any(|(_, names)| names.contains(&operation))
}
