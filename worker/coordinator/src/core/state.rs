//! What a node knows of its group's keys.
//!
//! Watches can lose, repeat and reorder events, so a state can be old; it never goes back, and every decision that is made
//! on it is a transaction that compares.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound;
use std::sync::Arc;

use super::record::{Claim, Entry, Key, Name, NodeRecord, NodeState, Order, Phase, Session, Value, Want};

/// The keys of a group, each at the newest revision that is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// The highest revision that the engine has answered with.
    pub revision: i64,
    /// The revision of the last read of all: what did not exist then was deleted, if it is not newer.
    complete: i64,
    /// Deleted ones stay until the next read of all, so that a late event does not bring them back.
    entries: BTreeMap<Key, Arc<Entry>>,
}

impl State {
    /// Learns an entry. Returns whether it is news.
    pub fn apply(&mut self, entry: &Arc<Entry>) -> bool {
        self.revision = self.revision.max(entry.modified);
        match self.entries.get_mut(&entry.key) {
            Some(known) if known.modified >= entry.modified => false,
            Some(known) => {
                let same = known.value.is_none() && entry.value.is_none();
                *known = Arc::clone(entry);
                !same
            }
            None if entry.modified <= self.complete => false,
            None => {
                self.entries.insert(entry.key.clone(), Arc::clone(entry));
                entry.value.is_some()
            }
        }
    }

    /// Learns all entries that existed at a revision. Returns those that are news, deletions included.
    pub fn replace(&mut self, revision: i64, entries: &[Arc<Entry>]) -> Vec<Arc<Entry>> {
        self.revision = self.revision.max(revision);
        self.complete = self.complete.max(revision);
        let old = std::mem::take(&mut self.entries);
        self.entries = entries.iter().map(|entry| (entry.key.clone(), Arc::clone(entry))).collect();
        let mut news = Vec::new();
        for (key, known) in &old {
            match self.entries.get(key) {
                Some(entry) if entry.modified >= known.modified => {}
                None if known.modified <= revision => {
                    if known.value.is_some() {
                        news.push(Arc::new(Entry::deleted(key.clone(), revision)));
                    }
                }
                // An event was faster than this reply.
                _ => {
                    self.entries.insert(key.clone(), Arc::clone(known));
                }
            }
        }
        let is_news =
            |entry: &Arc<Entry>| old.get(&entry.key).is_none_or(|known| known.modified != entry.modified);
        news.extend(self.entries.values().filter(|entry| is_news(entry)).cloned());
        news
    }

    /// Whether the engine has lost what it knew: an entry that it read after `floor` is older than the one known at `floor`.
    pub fn contradicts(&self, floor: i64, entry: &Entry) -> bool {
        let known = self.entries.get(&entry.key);
        known.is_some_and(|known| known.modified <= floor && entry.modified < known.modified)
    }

    /// An entry that exists.
    pub fn get(&self, key: &Key) -> Option<&Arc<Entry>> {
        self.entries.get(key).filter(|entry| entry.value.is_some())
    }

    /// Everything that exists.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values().filter(|entry| entry.value.is_some())
    }

    fn from(&self, first: Key) -> impl Iterator<Item = &Arc<Entry>> {
        let entries = self.entries.range((Bound::Included(first), Bound::Unbounded));
        entries.map(|(_, entry)| entry).filter(|entry| entry.value.is_some())
    }

    /// The entry and the value of each claim; `None`: unreadable.
    pub fn claims(&self) -> impl Iterator<Item = (IpAddr, &Arc<Entry>, Option<&Claim>)> {
        let all = self.from(Key::Claim(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        all.map_while(|entry| match (&entry.key, &entry.value) {
            (Key::Claim(address), Some(Value::Claim(claim))) => Some((*address, entry, Some(claim))),
            (Key::Claim(address), _) => Some((*address, entry, None)),
            _ => None,
        })
    }

    /// The readable record of each node.
    pub fn nodes(&self) -> impl Iterator<Item = (&Name, &NodeRecord)> {
        let all = self.from(Key::Node("".into())).map_while(|entry| match &entry.key {
            Key::Node(name) => Some((name, entry)),
            _ => None,
        });
        all.filter_map(|(name, entry)| match &entry.value {
            Some(Value::Node(record)) => Some((name, record)),
            _ => None,
        })
    }

    /// The pieces of all declarations.
    pub fn pieces(&self) -> impl Iterator<Item = (&Name, &Arc<Entry>)> {
        self.from(Key::Have("".into(), 0)).map_while(|entry| match &entry.key {
            Key::Have(digest, _) => Some((digest, entry)),
            _ => None,
        })
    }

    /// The pins.
    pub fn wants(&self) -> impl Iterator<Item = (IpAddr, &Arc<Entry>, &Want)> {
        let all = self.from(Key::Want(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        let all = all.map_while(|entry| match &entry.key {
            Key::Want(address) => Some((*address, entry)),
            _ => None,
        });
        all.filter_map(|(address, entry)| match &entry.value {
            Some(Value::Want(want)) => Some((address, entry, want)),
            _ => None,
        })
    }

    /// The record of a node.
    pub fn node(&self, name: &Name) -> Option<&NodeRecord> {
        match &self.get(&Key::Node(Arc::clone(name)))?.value {
            Some(Value::Node(record)) => Some(record),
            _ => None,
        }
    }

    /// The session of a node that is not gone.
    pub fn session(&self, name: &Name) -> Option<Session> {
        let entry = self.get(&Key::Node(Arc::clone(name)))?;
        let record = self.node(name).filter(|record| record.state != NodeState::Gone)?;
        Some(Session { created: record.created.unwrap_or(entry.modified), nonce: record.nonce })
    }

    /// Whether the owner of a claim may hold the address: its session lives, or nothing readable says that it does not.
    pub fn is_held(&self, claim: &Claim) -> bool {
        let lives = match self.get(&Key::Node(Arc::clone(&claim.node))).and_then(|entry| entry.value.as_ref())
        {
            Some(Value::Node(record)) => {
                record.state != NodeState::Gone && record.nonce == claim.session.nonce
            }
            Some(_) => true,
            None => false,
        };
        claim.phase != Phase::Free && lives
    }

    /// The order to drain a node. An unreadable one is an order without details.
    pub fn drain(&self, name: &Name) -> Option<Order> {
        match &self.get(&Key::Drain(Arc::clone(name)))?.value {
            Some(Value::Order(order)) => Some(order.clone()),
            _ => Some(Order::default()),
        }
    }

    /// Whether voluntary moves are stopped.
    pub fn is_frozen(&self) -> bool {
        self.get(&Key::Freeze).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_event_brings_nothing_back() {
        let freeze = |modified, text: &str| Arc::new(Entry::decode(Key::Freeze, 5, modified, text.into()));
        let mut state = State::default();
        assert!(state.apply(&freeze(6, "{}")));
        assert!(!state.apply(&freeze(5, "{}")), "an older value");
        assert!(state.apply(&Arc::new(Entry::deleted(Key::Freeze, 8))));
        assert!(!state.apply(&freeze(7, "{}")), "it was deleted since");
        assert_eq!(state.replace(9, &[]), []);
        assert!(!state.apply(&freeze(7, "{}")), "the read of all found nothing");
        assert!(state.apply(&freeze(10, "{}")) && state.is_frozen());
        assert_eq!(state.replace(9, &[]), [], "an event was faster than the reply");
        assert!(state.is_frozen());
        assert_eq!(state.replace(11, &[]).len(), 1);
        assert!(!state.is_frozen());
    }
}
