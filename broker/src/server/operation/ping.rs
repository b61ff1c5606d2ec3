//! Ping: the broker answers.

use std::fmt;

use portreeve_protocol::Fault;
use portreeve_protocol::message::{Ping, Pong};

use super::Done;
use super::audit::Arguments;
use crate::server::session::Session;
use crate::server::state::Broker;

impl Arguments for Ping {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

pub fn ping(_: &Broker, _: &Session, _: &Ping) -> Result<Done<Pong>, Fault> {
    Ok(Done::new(Pong {}))
}
