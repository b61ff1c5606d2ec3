//! Policy: the rules of this peer and the floating addresses that it is allowed, a page of each.

use std::fmt;

use portreeve_protocol::Fault;
use portreeve_protocol::policy::{PolicyPage, PolicyRequest};

use super::Done;
use super::handler::{Handler, Immediate};
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::Broker;

impl Handler for PolicyRequest {
    const CHANGES_STATE: bool = false;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "after {}", self.after)
    }
}

impl Immediate for PolicyRequest {
    fn act(
        &self,
        _: &OperationPermit,
        broker: &Broker,
        session: &Session,
    ) -> Result<Done<PolicyPage>, Fault> {
        let page = broker.policy.borrow().page(&session.requester, self.after);
        let lease = broker.addresses.as_ref().map_or(0, |addresses| addresses.default_lease());
        Ok(Done::new(PolicyPage { lease, ..page }))
    }
}
