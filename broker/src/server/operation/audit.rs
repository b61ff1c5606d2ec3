//! The audit line and the counts: of each decision, after the answer is on its way. What a peer sent is escaped.

use std::fmt::{self, Write as _};
use std::time::Instant;

use portreeve_protocol::address::{ListAddresses, RenewAddress};
use portreeve_protocol::message::{Operation, Ping, StatusRequest};
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::{Fault, FaultCode, Kind};

use crate::policy::{Policy, Requester, Rule};
use crate::server::session::Session;
use crate::server::state::Broker;

/// A request's arguments, as an audit line tells them: what was asked for, and of how it only what is unusual.
pub trait Arguments: Operation {
    /// Writes them; a line shows the first few thousand bytes. Text of the peer's goes through [`Text`](portreeve_protocol::Text)'s Display, which escapes.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// Tells the rules that permit it, where any has to.
    fn rules(&self, _: &Policy, _: &Requester, _: &mut dyn FnMut(&Rule)) {}

    /// Counts what became of it; of each part, where it has several.
    fn count(_: &Self::Reply, count: impl Fn(Option<FaultCode>)) {
        count(None);
    }
}

/// Arguments as a line shows them.
pub struct Shown<'a, T>(pub &'a T);

impl<T: Arguments> fmt::Display for Shown<'_, T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Whole<'a, T>(&'a T);
        impl<T: Arguments> fmt::Display for Whole<'_, T> {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }
        Bounded::show(out, Whole(self.0))
    }
}

/// The lines of the configuration that permit a request: `file:line`, each once where it permits several in a row.
struct Rules<'a, T> {
    broker: &'a Broker,
    session: &'a Session,
    request: &'a T,
}

impl<T: Arguments> fmt::Display for Rules<'_, T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Whole<'a, T>(&'a Rules<'a, T>);
        impl<T: Arguments> fmt::Display for Whole<'_, T> {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Rules { broker, session, request } = self.0;
                let (mut last, mut result) = (None, Ok(()));
                request.rules(&broker.policy.borrow(), &session.requester, &mut |rule| {
                    if result.is_ok() && last.as_ref() != Some(&rule.place) {
                        let before = if last.is_some() { " " } else { "" };
                        result = write!(out, "{before}{}", rule.place);
                        last = Some(rule.place.clone());
                    }
                });
                match last {
                    None => out.write_str("-"),
                    Some(_) => result,
                }
            }
        }
        Bounded::show(out, Whole(self))
    }
}

/// As much as fits in a line that people read.
struct Bounded<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    left: usize,
    clipped: bool,
}

impl<'a, 'b> Bounded<'a, 'b> {
    fn show(out: &'a mut fmt::Formatter<'b>, what: impl fmt::Display) -> fmt::Result {
        let mut bounded = Bounded { out, left: LONGEST, clipped: false };
        let shown = write!(bounded, "{what}");
        if bounded.clipped { bounded.out.write_str("…") } else { shown }
    }
}

impl fmt::Write for Bounded<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut end = text.len().min(self.left);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let part = text.get(..end).unwrap_or_default();
        self.out.write_str(part)?;
        self.left -= part.len();
        self.clipped = part.len() < text.len();
        if self.clipped { Err(fmt::Error) } else { Ok(()) }
    }
}

/// How many bytes of arguments, or of rules, a line shows.
const LONGEST: usize = 4096;

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
    let rules = Rules { broker, session, request };
    let (session, operation, arguments) = (session.number, O::NAME, Shown(request));
    match fault {
        None if OFTEN.contains(&O::KIND) => {
            tracing::debug!(target: "audit", session, %peer, operation, micros, "done");
        }
        None => {
            tracing::info!(target: "audit", session, %peer, operation, %arguments, %rules, micros, "done");
        }
        Some(_) if !may_log => {}
        Some(fault) => {
            let (code, why, about, errno) =
                (fault.code.name(), &*fault.message, &*fault.subject, fault.errno);
            tracing::warn!(target: "audit", session, %peer, operation, %arguments, code, why, about, errno, micros, "refused");
        }
    }
}
