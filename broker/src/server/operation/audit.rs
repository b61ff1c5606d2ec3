//! The audit line and the counts of each request, written after its reply is on the way. Text of a peer is escaped.

use std::fmt::{self, Write as _};
use std::time::Instant;

use portreeve_protocol::Fault;
use portreeve_protocol::message::Operation;

use super::handler::Handler;
use crate::policy::Permit;
use crate::server::reply::Delivery;
use crate::server::session::Session;
use crate::server::state::Broker;

/// How many bytes of arguments, or of rules, a line shows.
const MAX_SHOWN: usize = 4096;

/// Counts a request and writes its audit line, which names the rules of the permit that allowed it.
pub fn audit<O: Handler>(
    broker: &Broker,
    session: &Session,
    request: &O,
    outcome: Result<(&O::Permit, &O::Reply), &Fault>,
    started: Instant,
) {
    const { assert!(!(O::CHANGES_STATE && O::FREQUENT), "what changes state is audited at the level info") };
    let duration = started.elapsed();
    broker.counters.add_latency(O::KIND, duration);
    let count = |code| broker.counters.add_outcome(O::KIND, code);
    let duration_us = duration.as_micros();
    let (peer, number, operation, arguments) =
        (&session.requester, session.number, O::NAME, Arguments(request));
    match outcome {
        Ok((permit, reply)) => {
            O::count(reply, count);
            let done = || {
                let rules = Rules(permit);
                tracing::info!(target: "audit", session = number, %peer, operation, %arguments, %rules, duration_us, "done");
            };
            match (O::CHANGES_STATE, O::FREQUENT) {
                (true, _) => session.account.record(done),
                (false, false) => session.account.notice(done),
                (false, true) => {
                    tracing::debug!(target: "audit", session = number, %peer, operation, duration_us, "done");
                }
            }
        }
        Err(fault) => {
            count(Some(fault.code));
            refused(session, O::NAME, Some(&arguments), fault, Some(duration_us));
        }
    }
}

/// Counts a request and writes its audit line, when it is known what became of its reply.
pub fn audit_delivery<O: Handler>(
    broker: &Broker,
    session: &Session,
    request: &O,
    outcome: Result<(&O::Permit, &O::Reply), &Fault>,
    delivery: &Delivery,
    started: Instant,
) {
    match (delivery, outcome) {
        (Delivery::Replaced(fault), Ok(_)) => audit(broker, session, request, Err(fault), started),
        (Delivery::Lost(reason), Ok((permit, reply))) => {
            let duration = started.elapsed();
            broker.counters.add_latency(O::KIND, duration);
            O::count(reply, |code| broker.counters.add_outcome(O::KIND, code));
            let (peer, number, operation) = (&session.requester, session.number, O::NAME);
            let (arguments, rules, duration_us) = (Arguments(request), Rules(permit), duration.as_micros());
            tracing::warn!(target: "audit", session = number, %peer, operation, %arguments, %rules, reason, duration_us, "done, but the reply was not sent");
        }
        (_, outcome) => audit(broker, session, request, outcome, started),
    }
}

/// Writes the line of one part of a request that was refused, as if it had been requested alone.
pub fn audit_part<O: Operation>(session: &Session, arguments: Option<&dyn fmt::Display>, fault: &Fault) {
    refused(session, O::NAME, arguments, fault, None);
}

fn refused(
    session: &Session,
    operation: &str,
    arguments: Option<&dyn fmt::Display>,
    fault: &Fault,
    duration_us: Option<u128>,
) {
    session.account.notice(|| {
        let arguments = arguments.map(tracing::field::display);
        let (peer, session) = (&session.requester, session.number);
        let (code, reason, subject, errno) = (fault.code.name(), &*fault.message, &*fault.subject, fault.errno);
        tracing::warn!(target: "audit", session, %peer, operation, arguments, code, reason, subject, errno, duration_us, "refused");
    });
}

/// A request's arguments as a line shows them.
pub struct Arguments<'a, O>(pub &'a O);

impl<O: Handler> fmt::Display for Arguments<'_, O> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bounded::show(out, Written(|out: &mut fmt::Formatter<'_>| self.0.arguments(out)))
    }
}

/// The lines of the configuration that a permit names: `file:line`, once for several parts in a row with the same line.
struct Rules<'a, P>(&'a P);

impl<P: Permit> fmt::Display for Rules<'_, P> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = |out: &mut fmt::Formatter<'_>| {
            let (mut last, mut result) = (String::new(), Ok(()));
            self.0.for_each_rule(&mut |rule| {
                if result.is_ok() && last != rule.place {
                    let separator = if last.is_empty() { "" } else { " " };
                    result = write!(out, "{separator}{}", rule.place);
                    last.clone_from(&rule.place);
                }
            });
            if last.is_empty() { out.write_str("-") } else { result }
        };
        Bounded::show(out, Written(places))
    }
}

/// Displays what a function writes.
struct Written<F>(F);

impl<F: Fn(&mut fmt::Formatter<'_>) -> fmt::Result> fmt::Display for Written<F> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)(out)
    }
}

/// Writes only as much as a person can read in one line.
struct Bounded<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    remaining: usize,
    truncated: bool,
}

impl<'a, 'b> Bounded<'a, 'b> {
    fn show(out: &'a mut fmt::Formatter<'b>, what: impl fmt::Display) -> fmt::Result {
        let mut bounded = Bounded { out, remaining: MAX_SHOWN, truncated: false };
        let shown = write!(bounded, "{what}");
        if bounded.truncated { bounded.out.write_str("…") } else { shown }
    }
}

impl fmt::Write for Bounded<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut end = text.len().min(self.remaining);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let part = text.get(..end).unwrap_or_default();
        self.out.write_str(part)?;
        self.remaining -= part.len();
        self.truncated = part.len() < text.len();
        if self.truncated { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use portreeve_protocol::List;
    use portreeve_protocol::address::{AddAddress, MoveAddress};
    use portreeve_protocol::limit::SetLimit;

    use super::*;
    use crate::config::parse_text;
    use crate::policy::{Policy, Requester};

    /// A policy with a permit after `lines_before` empty lines.
    fn policy(lines_before: usize) -> Policy {
        let text = format!(
            "{}broker {{ permit p {{ address = ( 10.1.1.0/24 ) interface = eth1 limit = ( \"nofile=9\" ) }} }}
             cluster {{ topology 10.1.1.0/24 {{ interface = eth0 }} }}",
            "\n".repeat(lines_before)
        );
        let (config, _) = parse_text("p.conf", &text).unwrap();
        Policy::new(&config, &mut |_| None).unwrap()
    }

    fn rules<O: Handler>(policy: &Policy, request: &O) -> String {
        Rules(&request.decide(policy, &Requester::Worker).unwrap()).to_string()
    }

    fn add() -> AddAddress {
        let addresses = List::truncated(["10.1.1.7", "10.1.2.7"].map(|text| text.parse().unwrap()));
        AddAddress { addresses, lease: None, epoch: 1, probes: 0, announce: false, ..AddAddress::default() }
    }

    #[test]
    fn a_permit_keeps_naming_its_rule_after_a_reload() {
        let current = RefCell::new(policy(0));
        let permit = add().decide(&current.borrow(), &Requester::Worker).unwrap();
        current.replace(policy(3));
        assert_eq!(Rules(&permit).to_string(), "p.conf:1");
        assert_eq!(rules(&current.borrow(), &add()), "p.conf:4");
    }

    #[test]
    fn each_operation_on_a_resource_names_its_rule() {
        let policy = policy(1);
        let moved = |interface: &str| MoveAddress {
            addresses: List::truncated(["10.1.1.7".parse().unwrap()]),
            interface: portreeve_protocol::Text::truncated(interface),
            epoch: 1,
            announce: false,
        };
        assert_eq!(rules(&policy, &moved("eth0")), "p.conf:2");
        let limit =
            SetLimit { resource: portreeve_protocol::Text::truncated("nofile"), soft: Some(9), hard: None };
        assert_eq!(rules(&policy, &limit), "p.conf:2");
    }
}
