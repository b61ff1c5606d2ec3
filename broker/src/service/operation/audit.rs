//! The audit line: one a decision, written after the answer is on its way. What a peer sent is escaped in it.

use std::fmt;
use std::time::Instant;

use portreeve_protocol::address::{ListAddresses, RenewAddress};
use portreeve_protocol::message::{Operation, Ping, StatusRequest};
use portreeve_protocol::{Fault, Kind};

use crate::service::session::Session;

/// A request's arguments, as an audit line tells them: what was asked for, and of how it only what is unusual.
pub trait Arguments {
    /// Writes them. Text of the peer's goes through [`Text`](portreeve_protocol::Text)'s Display, which escapes.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// Arguments as a line shows them.
pub struct Shown<'a, T>(pub &'a T);

impl<T: Arguments> fmt::Display for Shown<'_, T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// What is asked every few seconds and changes nothing, or goes on as it was.
const OFTEN: [Kind; 4] = [Ping::KIND, StatusRequest::KIND, RenewAddress::KIND, ListAddresses::KIND];

/// Writes the line.
pub fn audit<O: Operation + Arguments>(
    session: &Session,
    request: &O,
    fault: Option<&Fault>,
    started: Instant,
) {
    let may_log = fault.is_none() || session.account.may_log();
    let (peer, micros) = (&session.requester, started.elapsed().as_micros());
    let (session, operation, arguments) = (session.number, O::NAME, Shown(request));
    match fault {
        None if OFTEN.contains(&O::KIND) => {
            tracing::debug!(target: "audit", session, %peer, operation, micros, "done");
        }
        None => {
            tracing::info!(target: "audit", session, %peer, operation, %arguments, micros, "done");
        }
        Some(_) if !may_log => {}
        Some(fault) => {
            let (code, why, errno) = (fault.code.word(), &*fault.message, fault.errno);
            tracing::warn!(target: "audit", session, %peer, operation, %arguments, code, ?why, errno, micros, "refused");
        }
    }
}
