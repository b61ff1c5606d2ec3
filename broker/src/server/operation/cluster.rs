//! Cluster: the settings of the configuration that a coordinator needs.

use std::fmt;

use portreeve_protocol::Fault;
use portreeve_protocol::cluster::{ClusterRequest, ClusterSettings};

use super::Done;
use super::handler::{Handler, Immediate};
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::Broker;

impl Handler for ClusterRequest {
    const CHANGES_STATE: bool = false;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Immediate for ClusterRequest {
    fn act(&self, _: &OperationPermit, broker: &Broker, _: &Session) -> Result<Done<ClusterSettings>, Fault> {
        Ok(Done::new(broker.policy.borrow().cluster_settings()))
    }
}
