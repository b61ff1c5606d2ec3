//! RenewAll: which addresses the peer has is known only here, so here each needs its permit.

use std::fmt;

use portreeve_protocol::Fault;
use portreeve_protocol::address::{RenewAll, RenewedAll};

use super::Done;
use super::address::{lease_end, manager};
use super::handler::{Handler, Immediate};
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::Broker;

impl Handler for RenewAll {
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

impl Immediate for RenewAll {
    fn act(
        &self,
        _: &OperationPermit,
        broker: &Broker,
        session: &Session,
    ) -> Result<Done<RenewedAll>, Fault> {
        let addresses = manager(broker)?;
        let end = lease_end(addresses, self.lease, self.until)?;
        let policy = broker.policy.borrow();
        let leader = |address| addresses.leader_of(address).unwrap_or(address);
        let is_permitted = |address| policy.lease(&session.requester, leader(address), self.lease).is_ok();
        Ok(Done::new(addresses.renew_all(session.holder(), end, is_permitted)?))
    }
}
