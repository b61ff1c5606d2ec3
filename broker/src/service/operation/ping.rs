//! Ping: the broker answers.

use portreeve_protocol::Fault;
use portreeve_protocol::message::{Ping, Pong};

use super::Done;
use crate::service::session::Session;
use crate::service::state::Broker;

pub fn ping(_: &Broker, _: &Session, _: &Ping) -> Result<Done<Pong>, Fault> {
    Ok(Done::new(Pong {}))
}
