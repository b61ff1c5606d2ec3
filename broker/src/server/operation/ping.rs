//! Ping: the broker replies.

use std::fmt;

use portreeve_protocol::Fault;
use portreeve_protocol::message::{Ping, Pong};

use super::Done;
use super::handler::{Handler, Immediate};
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::Broker;

impl Handler for Ping {
    const CHANGES_STATE: bool = false;
    const FREQUENT: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Immediate for Ping {
    fn act(&self, _: &OperationPermit, _: &Broker, _: &Session) -> Result<Done<Pong>, Fault> {
        Ok(Done::new(Pong {}))
    }
}
