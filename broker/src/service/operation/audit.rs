//! The audit line and the counts: of each decision, after the answer is on its way. What a peer sent is escaped.

use std::fmt;
use std::time::Instant;

use portreeve_protocol::address::{ListAddresses, RenewAddress};
use portreeve_protocol::message::{Operation, Ping, StatusRequest};
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::{Fault, FaultCode, Kind};

use crate::service::session::Session;
use crate::service::state::Broker;

/// A request's arguments, as an audit line tells them: what was asked for, and of how it only what is unusual.
pub trait Arguments: Operation {
    /// Writes them. Text of the peer's goes through [`Text`](portreeve_protocol::Text)'s Display, which escapes.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// Counts what became of it; of each part, where it has several.
    fn count(_: &Self::Reply, count: impl Fn(Option<FaultCode>)) {
        count(None);
    }
}

/// Arguments as a line shows them.
pub struct Shown<'a, T>(pub &'a T);

impl<T: Arguments> fmt::Display for Shown<'_, T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// What is asked every few seconds and changes nothing, or goes on as it was.
const OFTEN: [Kind; 5] =
    [Ping::KIND, StatusRequest::KIND, MetricsRequest::KIND, RenewAddress::KIND, ListAddresses::KIND];

/// Counts, and writes the line.
pub fn audit<O: Arguments>(
    broker: &Broker,
    session: &Session,
    request: &O,
    outcome: Result<&O::Reply, &Fault>,
    started: Instant,
) {
    let took = started.elapsed();
    broker.counters.latency(O::KIND, took);
    let count = |code| broker.counters.outcome(O::KIND, code);
    match outcome {
        Ok(reply) => O::count(reply, count),
        Err(fault) => count(Some(fault.code)),
    }
    let fault = outcome.err();
    let may_log = fault.is_none() || session.account.may_log();
    let (peer, micros) = (&session.requester, took.as_micros());
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
