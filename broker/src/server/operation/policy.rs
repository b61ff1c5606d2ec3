//! Policy: what this peer may ask for, and the addresses that move between hosts, a page of each.

use std::fmt;

use portreeve_protocol::Fault;
use portreeve_protocol::policy::{PolicyPage, PolicyRequest};

use super::Done;
use super::audit::Arguments;
use crate::server::session::Session;
use crate::server::state::Broker;

impl Arguments for PolicyRequest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "after {}", self.after)
    }
}

pub fn policy(
    broker: &Broker,
    session: &Session,
    request: &PolicyRequest,
) -> Result<Done<PolicyPage>, Fault> {
    let page = broker.policy.borrow().told(&session.requester, request.after);
    let lease = broker.addresses.as_ref().map_or(0, |addresses| addresses.default_lease());
    Ok(Done::new(PolicyPage { lease, ..page }))
}
