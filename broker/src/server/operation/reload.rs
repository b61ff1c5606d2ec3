//! Reload: the broker reads the configuration again, or reports the result of the last time.

use std::fmt;
use std::rc::Rc;

use portreeve_protocol::Fault;
use portreeve_protocol::reload::{Reload, Reloaded};

use super::handler::{Deferred, Handler};
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::Broker;

impl Handler for Reload {
    const CHANGES_STATE: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match (self.last, self.force.0) {
            (true, _) => "the last",
            (false, Some(true)) => "force",
            (false, _) => "",
        })
    }
}

impl Deferred for Reload {
    async fn act(
        self: Rc<Self>,
        _: Rc<OperationPermit>,
        broker: Rc<Broker>,
        session: Rc<Session>,
    ) -> Result<Reloaded, Fault> {
        match self.last {
            true => broker.reloading.last(),
            false => {
                broker.reloading.request(session.requester.to_string(), self.force.0 == Some(true)).await
            }
        }
    }
}
