//! The audit line and the counts of each request, written after its reply is on the way: one line, also for a request with
//! several parts. Text of a peer is escaped.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use portreeve_protocol::Fault;
use tracing::field::{DisplayValue, display};

use super::handler::{Handler, Part};
use crate::log;
use crate::policy::Permit;
use crate::server::reply::Delivery;
use crate::server::session::Session;
use crate::server::state::Broker;

/// How many bytes of arguments, of reasons, or of rules, a line shows.
const MAX_SHOWN: usize = 4096;
/// How many bytes they mostly have.
const TYPICAL: usize = 64;

/// Counts a request and writes its audit line, which names the rules of the permit that allowed it.
pub fn audit<O: Handler>(
    broker: &Broker,
    session: &Session,
    request: &O,
    outcome: Result<(&O::Permit, &O::Reply), &Fault>,
    started: Instant,
) {
    write_line(broker, session, request, outcome, None, started);
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
        (Delivery::Replaced(fault), Ok(_)) => {
            write_line(broker, session, request, Err(fault), None, started);
        }
        (Delivery::Lost(reason), Ok(_)) => {
            write_line(broker, session, request, outcome, Some(reason), started);
        }
        (_, outcome) => write_line(broker, session, request, outcome, None, started),
    }
}

fn write_line<O: Handler>(
    broker: &Broker,
    session: &Session,
    request: &O,
    outcome: Result<(&O::Permit, &O::Reply), &Fault>,
    lost: Option<&str>,
    started: Instant,
) {
    const { assert!(!(O::CHANGES_STATE && O::FREQUENT), "what changes state is audited at the level info") };
    let duration = started.elapsed();
    broker.counters.add_latency(O::KIND, duration);
    let summary = match outcome {
        Ok((_, reply)) => Summary::of_reply(request, reply),
        Err(fault) => Summary::of_fault(fault),
    };
    (0..summary.done).for_each(|_| broker.counters.add_outcome(O::KIND, None));
    for fault in &summary.refused {
        broker.counters.add_outcome(O::KIND, Some(fault.code));
    }
    let is_routine = O::FREQUENT && summary.refused.is_empty() && lost.is_none();
    if is_routine && !log::shows_debug() {
        return;
    }
    let line = Line {
        operation: O::NAME,
        via: request.via(),
        arguments: bounded(Written(|out: &mut fmt::Formatter<'_>| request.arguments(out))),
        summary,
        lost,
        rules: outcome.map_or_else(|_| String::new(), |(permit, _)| bounded(Rules(permit))),
        duration,
    };
    line.write(session, O::CHANGES_STATE, is_routine);
}

/// The fields of an audit line.
struct Line<'a> {
    operation: &'static str,
    via: Option<&'static str>,
    arguments: String,
    summary: Summary<'a>,
    /// Why the reply was not sent.
    lost: Option<&'a str>,
    rules: String,
    duration: Duration,
}

impl Line<'_> {
    fn write(&self, session: &Session, changes_state: bool, is_routine: bool) {
        let Self { operation, via, summary, lost, .. } = self;
        let (peer, number) = (log::named(session.holder()), session.number);
        let (arguments, rules) = (shown(&self.arguments), shown(&self.rules));
        let duration_us = u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX);
        let (done, refused) = summary.counts();
        if summary.refused.is_empty() && lost.is_none() {
            let write = || {
                tracing::info!(target: "audit", session = number, %peer, operation, via, arguments, done, rules, duration_us, "done");
            };
            return match (changes_state, is_routine) {
                (true, _) => session.account.record(write),
                (false, false) => session.account.notice(write),
                (false, true) => session.account.notice(|| {
                    tracing::debug!(target: "audit", session = number, %peer, operation, via, arguments, done, rules, duration_us, "done");
                }),
            };
        }
        let write = || {
            let code = summary.refused.first().map(|fault| fault.code.name());
            let reasons = bounded(Reasons(&summary.refused));
            let reason = shown(&reasons);
            let subject =
                summary.refused.iter().map(|fault| &*fault.subject).find(|subject| !subject.is_empty());
            let errno = summary.refused.iter().map(|fault| fault.errno).find(|errno| *errno != 0);
            let what = Outcome { what: summary.outcome(), lost: *lost };
            tracing::warn!(
                target: "audit", session = number, %peer, operation, via, arguments, done, refused, code, reason, subject, errno,
                rules, duration_us, "{what}"
            );
        };
        match changes_state && summary.done > 0 {
            true => session.account.record(write),
            false => session.account.notice(write),
        }
    }
}

/// The value of a field; an empty one is left out.
fn shown(text: &str) -> Option<DisplayValue<&str>> {
    Some(text).filter(|text| !text.is_empty()).map(display)
}

/// What became of a request, or of each part of it.
struct Summary<'f> {
    /// Whether the request has parts of which each has a result of its own.
    has_parts: bool,
    done: usize,
    refused: Vec<Cow<'f, Fault>>,
}

impl<'f> Summary<'f> {
    fn of_fault(fault: &'f Fault) -> Self {
        Self { has_parts: false, done: 0, refused: vec![Cow::Borrowed(fault)] }
    }

    fn of_reply<O: Handler>(request: &O, reply: &'f O::Reply) -> Self {
        let Some(parts) = request.parts(reply) else {
            return Self { has_parts: false, done: 1, refused: Vec::new() };
        };
        let mut summary = Self { has_parts: true, done: 0, refused: Vec::new() };
        for part in parts {
            match part {
                Part::Done => summary.done += 1,
                Part::Refused(fault) => summary.refused.push(fault),
            }
        }
        summary
    }

    /// How many parts were done and refused; `None` for a request without parts.
    fn counts(&self) -> (Option<usize>, Option<usize>) {
        let count = |number| Some(number).filter(|_| self.has_parts);
        (count(self.done), count(self.refused.len()))
    }

    fn outcome(&self) -> &'static str {
        match (self.done, self.refused.len()) {
            (_, 0) => "done",
            (0, _) => "refused",
            _ => "partly done",
        }
    }
}

/// The message of a line.
struct Outcome<'a> {
    what: &'static str,
    lost: Option<&'a str>,
}

impl fmt::Display for Outcome<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lost {
            None => out.write_str(self.what),
            Some(reason) => write!(out, "{}, but the reply was not sent: {reason}", self.what),
        }
    }
}

/// The reasons of the refusals, each once.
struct Reasons<'a, 'f>(&'a [Cow<'f, Fault>]);

impl fmt::Display for Reasons<'_, '_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if self.0.iter().take(index).any(|earlier| earlier.message == fault.message) {
                continue;
            }
            let separator = if index == 0 { "" } else { "; " };
            // An error ends the loop: the line shows no more.
            write!(out, "{separator}{}", fault.message.as_str())?;
        }
        Ok(())
    }
}

/// The lines of the configuration that a permit names: `file:line`, once for several parts in a row with the same line.
struct Rules<'a, P>(&'a P);

impl<P: Permit> fmt::Display for Rules<'_, P> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut last, mut result) = (String::new(), Ok(()));
        self.0.for_each_rule(&mut |rule| {
            if result.is_ok() && last != rule.place {
                let separator = if last.is_empty() { "" } else { " " };
                result = write!(out, "{separator}{}", rule.place);
                last.clone_from(&rule.place);
            }
        });
        result
    }
}

/// Displays what a function writes.
struct Written<F>(F);

impl<F: Fn(&mut fmt::Formatter<'_>) -> fmt::Result> fmt::Display for Written<F> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)(out)
    }
}

/// The text of a value, as much as a person can read in one line.
fn bounded(what: impl fmt::Display) -> String {
    let mut bounded = Bounded { text: String::with_capacity(TYPICAL), is_truncated: false };
    // It fails only after the last part that is shown.
    let _ = write!(bounded, "{what}");
    if bounded.is_truncated {
        bounded.text.push('…');
    }
    bounded.text
}

/// See [`bounded`].
struct Bounded {
    text: String,
    is_truncated: bool,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut end = text.len().min(MAX_SHOWN - self.text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.text.push_str(text.get(..end).unwrap_or_default());
        self.is_truncated = end < text.len();
        if self.is_truncated { Err(fmt::Error) } else { Ok(()) }
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
