//! Hello: a peer says who it is and learns what it may do.

use std::fmt;

use portreeve_protocol::message::{Hello, Welcome};
use portreeve_protocol::{Fault, List, Text};

use super::Done;
use super::audit::Arguments;
use crate::server::session::Session;
use crate::server::state::{Broker, RELEASE};

impl Arguments for Hello {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.client)
    }
}

pub fn hello(broker: &Broker, session: &Session, request: &Hello) -> Result<Done<Welcome>, Fault> {
    session.greet();
    if let Some(info) = broker.sessions.borrow_mut().get_mut(&session.number) {
        info.client = request.client.clone();
    }
    let policy = broker.policy.borrow();
    let allowed = policy.operations(&session.requester).into_iter();
    Ok(Done::new(Welcome {
        broker: std::process::id(),
        release: Text::truncated(RELEASE),
        features: 0,
        capabilities: broker.processes.broker.credentials.effective,
        peer: Text::truncated(&session.requester.to_string()),
        operations: List::truncated(allowed.map(Text::truncated)),
    }))
}
