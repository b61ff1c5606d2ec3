//! How the node joins, resumes and leaves, and what it writes about itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Membership, Node, Purpose, Stage};
use crate::core::news::{Kind, News};
use crate::core::record::{Entry, Key, Name, NodeRecord, NodeState, Session, Value};
use crate::core::time::BootTime;
use crate::core::txn::{self, Operation, Txn};

/// How long a node must stay until its earlier joins do not count any more; also the longest time to maturity.
const FORGET_JOINS: Duration = Duration::from_secs(600);
/// How many addresses one value of a declaration contains.
const PIECE: usize = 1_000;

impl Node {
    /// Tries to get a session.
    pub(super) fn enter(&mut self) {
        if !self.is_loaded || self.is_sent(&Purpose::Beat) || self.is_stopping {
            if self.is_stopping && self.leases.is_empty() {
                self.stage = Stage::Left;
            }
            return;
        }
        if !self.is_listed {
            self.ping();
            return;
        }
        let key = Key::Beat(Arc::clone(&self.config.name));
        let Some(entry) = self.state.get(&key).cloned() else {
            self.may_resume = false;
            if self.leases.is_empty() && self.declare() {
                self.join();
            }
            return;
        };
        match &entry.value {
            Some(Value::Beat(beat)) if beat.boot == self.config.boot => {
                if self.may_resume {
                    self.nonce = beat.nonce;
                    let text = self.new_beat();
                    let txn = txn::beat(&self.config.name, Some(Arc::clone(&entry.text)), &text, None, &[]);
                    self.send(Purpose::Beat, txn);
                } else if self.leases.is_empty() {
                    // What is left of the session that this process lost.
                    self.send_evict(Arc::clone(&self.config.name), &entry);
                }
            }
            Some(Value::Beat(beat)) => {
                self.may_resume = false;
                let name = Arc::clone(&self.config.name);
                if self.patience.has_changed(&name) {
                    let boot = &beat.boot;
                    self.stage =
                        Stage::Refused(format!("another host ({boot}) is the node {name} of this cluster"));
                    return;
                }
                let at = self.evict_at(&name, &entry, beat);
                if at.is_some_and(|at| self.is_due(at)) {
                    self.send_evict(name, &entry);
                } else {
                    self.look();
                }
            }
            _ => {
                let name = &self.config.name;
                self.stage = Stage::Refused(format!("the value of beat/{name} in the engine cannot be read"));
            }
        }
    }

    /// Reads the beats that a node without a session waits for.
    pub(super) fn look(&mut self) {
        let at = self.beat_at;
        if self.is_due(at) && !self.is_sent(&Purpose::Look) {
            self.beat_at = self.now.after(self.config.heartbeat);
            let names = self.monitored.iter().chain([&self.config.name]);
            let success = names.map(|name| Operation::Get(Key::Beat(Arc::clone(name)))).collect();
            self.send(Purpose::Look, Txn { success, ..Txn::default() });
        }
    }

    /// Writes the pieces of the declaration that are missing, or that another program has overwritten. Returns whether all are
    /// there.
    pub(super) fn declare(&mut self) -> bool {
        if self.is_declared {
            return true;
        }
        let declared: Vec<(IpAddr, Option<Name>)> = self.config.declared.clone().into_iter().collect();
        let mut is_complete = true;
        for (number, piece) in (0..).zip(declared.chunks(PIECE)) {
            let key = Key::Have(Arc::clone(&self.digest), number);
            let value = Value::Have(piece.iter().cloned().collect());
            let known = self.state.get(&key);
            if known.is_some_and(|entry| entry.value.as_ref() == Some(&value)) {
                continue;
            }
            is_complete = false;
            let txn = match known {
                None => txn::create(key, &value),
                // The digest in the key is that of this value, so nothing else belongs there.
                Some(_) => Txn { success: vec![Operation::Put(key, value.encode())], ..Txn::default() },
            };
            if !self.is_sent(&Purpose::Declare) {
                self.send(Purpose::Declare, txn);
            }
        }
        self.is_declared = is_complete;
        is_complete
    }

    pub(super) fn join(&mut self) {
        let is_mature = |record: &NodeRecord| {
            matches!(record.state, NodeState::Ready | NodeState::Sick | NodeState::Leaving)
        };
        let is_first = !self.state.nodes().any(|(_, record)| is_mature(record));
        self.joins += 1;
        self.nonce = self.config.nonce.wrapping_add(self.joins);
        let record = NodeRecord {
            nonce: self.nonce,
            created: None,
            version: self.config.version.clone(),
            state: if is_first { NodeState::Founding } else { NodeState::Joining },
            why: String::new(),
            declares: Arc::clone(&self.digest),
            is_auto: Some(self.config.is_auto),
            joins: self.state.node(&self.config.name).map_or(0, |record| record.joins).saturating_add(1),
            peer: self.config.peer.clone(),
            down: self.facts.down.clone(),
            refused: Vec::new(),
        };
        let text = self.new_beat();
        let txn = txn::beat(&self.config.name, None, &text, Some(record), &[]);
        self.send(Purpose::Beat, txn);
    }

    pub(super) fn joined(&mut self, text: Arc<str>, sent: BootTime, roster: Arc<[Name]>) {
        let key = Key::Beat(Arc::clone(&self.config.name));
        let entry = self.state.get(&key).cloned();
        let beat = entry.as_ref().and_then(|entry| match &entry.value {
            Some(Value::Beat(beat)) => Some((entry.created, beat.nonce)),
            _ => None,
        });
        let record = self.state.node(&self.config.name).cloned();
        let (Some((created, nonce)), Some(record)) = (beat, record) else {
            // An event overtook the reply: read both again.
            (self.is_loaded, self.read_at) = (false, self.now);
            return;
        };
        let own = self.rules.eviction(self.config.lease, self.config.late);
        let quarantine =
            if self.rules.quarantine { own.max(self.patience.longest()) } else { Duration::ZERO };
        let doubled = 2_u32.checked_pow(record.joins.saturating_sub(1)).unwrap_or(u32::MAX);
        let mature = self.config.mature.saturating_mul(doubled).min(FORGET_JOINS);
        let ready_at = match record.state {
            NodeState::Founding => self.now.after(quarantine),
            NodeState::Joining => self.now.after(quarantine.max(mature)),
            _ => self.now,
        };
        let kind = if self.may_resume { Kind::SessionResumed } else { Kind::SessionBegan };
        let name = Arc::clone(&self.config.name);
        self.add_news(|| News::of_node(kind, &name, ""));
        self.nonce = nonce;
        self.may_resume = false;
        self.stage = Stage::Member;
        self.membership = Some(Membership {
            session: Session { created, nonce },
            text,
            sent,
            roster,
            joined: self.now,
            joined_revision: self.state.revision,
            quarantine_until: self.now.after(quarantine),
            ready_at,
            state: record.state,
            joins: record.joins,
        });
        let claims: Vec<Arc<Entry>> = self.state.claims().map(|(_, entry, _)| Arc::clone(entry)).collect();
        for entry in claims {
            if let Key::Claim(address) = entry.key {
                self.note_claim(address, &entry);
            }
        }
        self.is_dirty = true;
    }

    /// Keeps `node/NODE` as it should be, whatever another program writes there.
    pub(super) fn write_record(&mut self) {
        let Some(Membership { session, state, ready_at, joined, joins, .. }) = self.membership.clone() else {
            return;
        };
        let known = self.state.node(&self.config.name).cloned();
        if !self.declare() {
            return;
        }
        let refused: Vec<(IpAddr, BootTime)> =
            self.refused.iter().map(|(address, (until, ..))| (*address, *until)).collect();
        let refused = refused.into_iter().filter(|(_, until)| !self.is_due(*until));
        let refused = refused.map(|(address, _)| address).collect();
        let forget_at = joined.after(FORGET_JOINS);
        let joins = if joins > 0 && self.is_due(forget_at) { 0 } else { joins };
        let hangs = self.broker_hangs.then(|| "the broker does not answer".to_owned());
        let sick = self.facts.sick.clone().or(hangs);
        let (state, why) = match sick {
            _ if self.is_stopping => (NodeState::Leaving, String::new()),
            Some(why) => (NodeState::Sick, why),
            None if self.is_due(ready_at) => (NodeState::Ready, String::new()),
            None => (state, String::new()),
        };
        let record = NodeRecord {
            nonce: session.nonce,
            created: Some(session.created),
            version: self.config.version.clone(),
            state,
            why,
            declares: Arc::clone(&self.digest),
            is_auto: Some(self.config.is_auto),
            joins,
            peer: self.config.peer.clone(),
            down: self.facts.down.clone(),
            refused,
        };
        if known.as_ref() != Some(&record) && !self.is_sent(&Purpose::Record) {
            self.send(Purpose::Record, txn::record(&self.config.name, session, record));
        }
    }

    pub(super) fn leave(&mut self) {
        let Some(membership) = &self.membership else { return };
        if !self.is_stopping || !self.owned.is_empty() || !self.leases.is_empty() || !self.requests.is_empty()
        {
            return;
        }
        let text = Arc::clone(&membership.text);
        let record = self.gone(&Arc::clone(&self.config.name));
        self.send(Purpose::Leave, txn::evict(&self.config.name, &text, record));
    }
}
