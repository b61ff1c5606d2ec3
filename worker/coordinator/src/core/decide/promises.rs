//! Keeping addresses without the engine, while every node that may evict this one promises not to do so.
//!
//! Promises: E rises only to L after the sending of requests that every node on the roster has answered with a promise. The
//! rosters are those of all beats of this session that can be in the engine, and only nodes on the roster of the beat that
//! is there evict. A node that has promised evicts no earlier than D after the request came. It promises nothing while a request
//! to evict the holder, its own or one of the process before it, may still be performed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Action, BrokerCall, Node, READ_INTERVAL, SHORTEST_LEASE};
use crate::core::news::{Kind, News};
use crate::core::patience::ALL_MONITOR_ALL;
use crate::core::promise::{PromiseAnswer, PromiseReply, PromiseRequest};
use crate::core::record::{Beat, Entry, Key, Name, NodeState, Value};
use crate::core::time::BootTime;

/// How many rounds of requests there are in a lease.
const ROUNDS: u32 = 12;

/// What the node was promised, and what it has promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Promises {
    /// When the next round is due at the earliest.
    ask_at: BootTime,
    /// Whether the broker has answered since the last round.
    pub(super) broker_answered: bool,
    /// When the last rounds were sent.
    rounds: BTreeMap<u64, BootTime>,
    /// For each node, when the newest request was sent that it answered with a promise.
    given: BTreeMap<Name, BootTime>,
    /// The last answer of each node, and when it came.
    answers: BTreeMap<Name, (PromiseAnswer, BootTime)>,
    /// When the addresses end by what all have promised.
    until: Option<BootTime>,
    /// Whether operators know that this node keeps its addresses without the engine.
    is_told: bool,

    /// The engine's revision at the first read of this process, or the first since the engine lost data.
    first_read: Option<i64>,
    /// Until when this node evicts which others not.
    made: BTreeMap<Name, (BootTime, BootTime)>,
    /// The beat of which this node last requested the deletion, for each node.
    evictions: BTreeMap<Name, Arc<str>>,
}

/// A node that may evict this one, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promiser {
    /// Its name.
    pub node: Name,
    /// Whether it accepts requests.
    pub has_peer: bool,
    /// Its last answer, and when it came.
    pub answer: Option<(PromiseAnswer, BootTime)>,
}

impl Promises {
    /// The session has ended: no promise for it counts any more. Those that this node has made stay.
    pub(super) fn lose_session(&mut self) {
        let made = std::mem::take(&mut self.made);
        let evictions = std::mem::take(&mut self.evictions);
        *self = Promises { made, evictions, first_read: self.first_read, ..Promises::default() };
    }

    /// The engine has lost data.
    pub(super) fn start_over(&mut self) {
        self.first_read = None;
    }

    /// Everything was read.
    pub(super) fn has_read(&mut self, revision: i64) {
        self.first_read.get_or_insert(revision);
    }

    /// The engine has confirmed a beat.
    pub(super) fn has_beaten(&mut self) {
        self.is_told = false;
    }

    /// This node requests the deletion of a beat.
    pub(super) fn evicts(&mut self, name: &Name, text: &Arc<str>) {
        self.evictions.insert(Arc::clone(name), Arc::clone(text));
    }

    /// When this node last promised not to evict that one, and until when.
    fn made_to(&self, name: &Name) -> Option<(BootTime, BootTime)> {
        self.made.get(name).copied()
    }

    pub(super) fn until(&self) -> Option<BootTime> {
        self.until
    }
}

impl Node {
    /// The nodes that may evict this one: those that have a session, and the node itself, after a reboot of its host. Empty:
    /// anyone may.
    pub(super) fn new_roster(&self) -> Arc<[Name]> {
        if !self.config.hold {
            return Arc::default();
        }
        let nodes = self.state.nodes().filter(|(_, record)| record.state != NodeState::Gone);
        let mut names: BTreeSet<&Name> = nodes.map(|(name, _)| name).collect();
        names.insert(&self.config.name);
        // In a larger cluster a few nodes monitor each, and which ones changes.
        if names.len() > ALL_MONITOR_ALL {
            return Arc::default();
        }
        names.into_iter().cloned().collect()
    }

    /// The nodes that may evict this one, whichever of its beats is in the engine; `None`: anyone may.
    fn evictors(&self) -> Option<BTreeSet<&Name>> {
        let confirmed = &self.membership.as_ref()?.roster;
        let sent = self.attempts.iter().map(|attempt| &attempt.roster);
        let sent = sent.filter(|_| self.rules.every_roster);
        let mut all = BTreeSet::new();
        let mut last: Option<&Arc<[Name]>> = None;
        for roster in sent.chain([confirmed]) {
            if roster.is_empty() {
                return None;
            }
            if last.is_none_or(|last| !Arc::ptr_eq(last, roster)) {
                all.extend(roster.iter());
            }
            last = Some(roster);
        }
        Some(all)
    }

    /// When the node needs promises, if no beat is confirmed until then.
    fn hold_at(&self) -> Option<BootTime> {
        let sent = self.membership.as_ref()?.sent;
        Some(sent.after(self.config.heartbeat + self.config.lease / 6))
    }

    /// Asks for promises when the engine owes the confirmation of a beat for too long; now and then also without need, so that
    /// operators see in time who could not promise.
    pub(super) fn ask_for_promises(&mut self) {
        let Some(needed) = self.hold_at().filter(|_| self.config.hold && !self.is_stopping) else {
            return;
        };
        let (lease, next) = (self.config.lease, self.promises.ask_at);
        let last = self.promises.rounds.values().next_back().copied();
        let at = match last {
            Some(last) => needed.max(next).min(last.after(READ_INTERVAL)),
            None => next,
        };
        if !self.is_due(at) {
            return;
        }
        if self.rules.broker_answers && !self.promises.broker_answered {
            self.ping();
            return;
        }
        self.last_id += 1;
        let (number, now) = (self.last_id, self.now);
        let members: Vec<Name> = self.evictors().into_iter().flatten().cloned().collect();
        self.promises.ask_at = now.after(lease / ROUNDS);
        self.promises.broker_answered = false;
        let longest = lease.max(READ_INTERVAL);
        self.promises.rounds.retain(|_, sent| now.since(*sent) <= longest);
        self.promises.rounds.insert(number, now);
        for to in members {
            let peer = self.state.node(&to).map(|record| record.peer.clone()).unwrap_or_default();
            if to == self.config.name || peer.is_empty() {
                continue;
            }
            let milliseconds = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
            let request = PromiseRequest {
                to,
                node: Arc::clone(&self.config.name),
                nonce: self.nonce,
                process: self.config.nonce,
                number,
                lease_ms: milliseconds(self.config.lease),
                late_ms: milliseconds(self.config.late),
            };
            self.out.push(Action::AskPromise(peer, request));
        }
        self.hold_on();
    }

    /// A node that was asked has answered.
    pub(super) fn promised(&mut self, reply: &PromiseReply) {
        let sent = self.promises.rounds.get(&reply.number).copied();
        let Some(sent) = sent.filter(|_| reply.process == self.config.nonce && self.membership.is_some())
        else {
            return;
        };
        self.promises.answers.insert(Arc::clone(&reply.node), (reply.answer, self.now));
        if reply.answer == PromiseAnswer::Promised {
            let sent = if self.rules.promise_from_sending { sent } else { self.now };
            let given = self.promises.given.entry(Arc::clone(&reply.node)).or_insert(sent);
            *given = sent.max(*given);
            self.hold_on();
        }
    }

    /// Makes the addresses last for as long as all promises allow.
    fn hold_on(&mut self) {
        let (Some(end), Some(needed), Some(evictors)) = (self.end(), self.hold_at(), self.evictors()) else {
            return;
        };
        if self.now < needed {
            return;
        }
        let Some(last) = self.promises.rounds.values().next_back().copied() else { return };
        let others = evictors.iter().filter(|name| ***name != self.config.name);
        let given = others.clone().map(|name| self.promises.given.get(*name).copied());
        let since = match self.rules.every_promise {
            true => given.min().unwrap_or(Some(last)),
            false => given.flatten().max(),
        };
        let Some(until) = since.map(|since| since.after(self.config.lease)) else { return };
        if until <= end {
            return;
        }
        let names: Vec<&str> = others.map(|name| &***name).collect();
        let detail = match names.len() {
            0 => "no other node may evict this one".to_owned(),
            _ => format!("promised by {}", names.join(", ")),
        };
        self.promises.until = Some(until);
        if !std::mem::replace(&mut self.promises.is_told, true) {
            let name = Arc::clone(&self.config.name);
            self.add_news(|| News::of_node(Kind::Holding, &name, detail));
        }
        if until > self.now.after(SHORTEST_LEASE) {
            self.until = self.until.max(until);
            self.call(BrokerCall::RenewAll { until });
        }
    }

    /// Another node asks for a promise.
    pub(super) fn promise_asked(&mut self, ticket: u64, request: &PromiseRequest) {
        // Another node had the address to which it was sent.
        if request.to != self.config.name || request.node == self.config.name {
            return;
        }
        let promised = self.promise(request);
        if let Ok(patience) = promised {
            let until = self.now.after(patience);
            let known = self.promises.made_to(&request.node).map_or(until, |(_, known)| known.max(until));
            self.promises.made.insert(Arc::clone(&request.node), (self.now, known));
        }
        let reply = PromiseReply {
            node: Arc::clone(&self.config.name),
            process: request.process,
            number: request.number,
            answer: promised.err().unwrap_or(PromiseAnswer::Promised),
        };
        self.out.push(Action::AnswerPromise(ticket, reply));
    }

    /// For how long this node can promise not to evict another one, or why it cannot.
    fn promise(&self, request: &PromiseRequest) -> Result<Duration, PromiseAnswer> {
        // Only what the engine says of the holder counts: a request cannot make this node wait for longer.
        let matches = |beat: &Beat| {
            beat.nonce == request.nonce
                && u64::from(request.lease_ms) <= beat.lease_ms
                && u64::from(request.late_ms) <= beat.late_ms
        };
        let entry = self.state.get(&Key::Beat(Arc::clone(&request.node)));
        let known = entry.and_then(|entry| match &entry.value {
            Some(Value::Beat(beat)) if matches(beat) => Some((entry, beat)),
            _ => None,
        });
        let is_new = |entry: &Entry| {
            let first = self.promises.first_read;
            !self.rules.promise_seen || first.is_some_and(|first| entry.modified > first)
        };
        let Some((entry, beat)) = known.filter(|(entry, _)| is_new(entry)) else {
            return Err(PromiseAnswer::Unseen);
        };
        let evicted = self.promises.evictions.get(&request.node);
        if self.rules.promise_unless_evicting && evicted == Some(&entry.text) {
            return Err(PromiseAnswer::Evicting);
        }
        // Whoever is the only one that the engine does not answer is to give its addresses up.
        let overdue = self.config.heartbeat + beat.lease() / ROUNDS;
        let answered = self.patience.answered_at();
        if answered.is_some_and(|answered| self.now.since(answered) <= overdue) {
            return Err(PromiseAnswer::EngineReplies);
        }
        Ok(self.rules.eviction(beat.lease(), beat.late()))
    }

    /// Whether this node may evict that one, of which the beat is known.
    pub(super) fn may_evict(&self, beat: &Beat) -> bool {
        beat.roster.is_empty() || beat.roster.contains(&self.config.name) || !self.rules.roster_only
    }

    /// Until when this node has promised not to evict that one.
    pub(super) fn promised_until(&self, name: &Name) -> Option<BootTime> {
        let made = self.promises.made_to(name).filter(|_| self.rules.promise_binds);
        made.map(|(_, until)| until)
    }

    /// When a node last asked this one for a promise and got it: it lived then.
    pub fn promised_at(&self, name: &Name) -> Option<BootTime> {
        self.promises.made_to(name).map(|(at, _)| at)
    }

    /// Whether this node keeps its addresses by the promises of others for longer than by its last beat.
    pub fn is_holding(&self) -> bool {
        let beat = self.membership.as_ref().map(|membership| membership.sent.after(self.config.lease));
        beat.zip(self.promises.until).is_some_and(|(beat, until)| until > beat && until > self.now)
    }

    /// The other nodes that may evict this one; `None`: anyone may, so it cannot hold.
    pub fn promisers(&self) -> Option<Vec<Promiser>> {
        let others = self.evictors()?.into_iter().filter(|name| **name != self.config.name);
        let promiser = |name: &Name| Promiser {
            node: Arc::clone(name),
            has_peer: self.state.node(name).is_some_and(|record| !record.peer.is_empty()),
            answer: self.promises.answers.get(name).copied(),
        };
        Some(others.map(promiser).collect())
    }
}
