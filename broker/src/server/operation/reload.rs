//! Reload: the configuration is read again, or what came of the last time is told.

use std::fmt;
use std::rc::Rc;

use portreeve_protocol::Fault;
use portreeve_protocol::reload::{Reload, Reloaded};

use super::audit::Arguments;
use crate::server::session::Session;
use crate::server::state::Broker;

impl Arguments for Reload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.last { "the last" } else { "" })
    }
}

pub async fn reload(
    broker: Rc<Broker>,
    session: Rc<Session>,
    request: Rc<Reload>,
) -> Result<Reloaded, Fault> {
    match request.last {
        true => broker.reloading.last(),
        false => broker.reloading.ask(session.requester.to_string()).await,
    }
}
