//! What follows from each entry that the node learns.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Node;
use crate::core::placement;
use crate::core::record::{Claim, Entry, Key, Phase, Value};

/// How long after a change as planned the plan is made again.
const REVIEW: Duration = Duration::from_secs(1);

impl Node {
    /// Learns an entry, and what follows from it.
    pub(super) fn learn(&mut self, entry: &Arc<Entry>) {
        let old = self.state.get(&entry.key).cloned();
        if self.state.apply(entry) {
            self.add_change(old.as_deref(), entry);
            self.note(old.as_deref(), entry);
        }
    }

    pub(super) fn note(&mut self, old: Option<&Entry>, entry: &Arc<Entry>) {
        let was_dirty = self.is_dirty;
        match &entry.key {
            Key::Beat(name) => {
                self.patience.observe(self.now, entry, &self.rules);
                self.is_touched |= *name == self.config.name;
            }
            Key::Node(name) => {
                let lives = self.state.session(name).is_some();
                if self.ring.set(name, lives) {
                    self.monitored = self.ring.monitored_by(&self.config.name);
                }
                let role = |entry: &Entry| entry.value.as_ref().map(placement::role);
                self.is_dirty |= old.and_then(role) != role(entry);
                self.is_touched |= *name == self.config.name;
            }
            Key::Claim(address) => self.note_claim(*address, entry),
            Key::Want(address) => {
                self.pins.remove(address);
                (self.is_dirty, self.is_touched) = (true, true);
            }
            Key::Have(..) => (self.is_dirty, self.is_declared) = (true, false),
            Key::Drain(_) | Key::Freeze => self.is_dirty = true,
            Key::Foreign(_) => {}
        }
        self.is_touched |= (self.is_dirty && !was_dirty) || self.has_twin;
    }

    pub(super) fn note_claim(&mut self, address: IpAddr, entry: &Arc<Entry>) {
        let claim = match &entry.value {
            Some(Value::Claim(claim)) => Some(claim),
            _ => None,
        };
        let mine = self.membership.as_ref().map(|membership| membership.session);
        // An engine that lost data counts the same revisions again, and claims compare only these: with such a claim of an
        // earlier session, only a new session helps.
        let is_twin = |claim: &Claim| {
            mine.is_some_and(|mine| {
                claim.session.created == mine.created && claim.session.nonce != mine.nonce
            })
        };
        self.has_twin |= claim.is_some_and(|claim| claim.node == self.config.name && is_twin(claim));
        let is_mine = claim.is_some_and(|claim| {
            claim.node == self.config.name && Some(claim.session) == mine && claim.phase != Phase::Free
        });
        if is_mine {
            self.owned.insert(address, Arc::clone(entry));
            self.is_touched = true;
        } else if self.owned.remove(&address).is_some() {
            self.moves.remove(&address);
            self.is_touched = true;
        }
        // What happens as planned is no reason to plan again at once, only when all of it had time to happen: addresses
        // without a holder can belong elsewhere then.
        let owner = claim.filter(|claim| claim.phase != Phase::Free).map(|claim| &claim.node);
        if owner.is_none() || owner != self.placement.node(address) {
            self.is_dirty = true;
        } else if self.review_at.is_none() {
            self.review_at = Some(self.now.after(REVIEW));
            self.is_touched = true;
        }
    }
}
