//! When a node that shows no life has ended, and when a node's own addresses end.
//!
//! Promises: an observer evicts a node only after every address of that node has ended by the kernel of its host, although
//! both clocks are wrong by up to 0.5 %. A stall of the engine is nobody's death.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::record::{Beat, Entry, Key, Name, Value};
use super::rules::Rules;
use super::time::BootTime;

/// The error of a clock's rate: one of two hosts may be slow and the other fast by this many thousandths.
pub const RATE_ERROR: u32 = 5;
/// How long one attempt at an endpoint of the engine lasts at most.
pub const ATTEMPT: Duration = Duration::from_millis(800);
/// Up to this many nodes, all monitor all; above it, five monitor each.
pub(crate) const ALL_MONITOR_ALL: usize = 16;
const MONITORS: usize = 5;

/// D: how long after the last change of a beat its observers wait before they evict the node.
pub fn eviction(lease: Duration, late: Duration) -> Duration {
    let longer = lease.saturating_add(Duration::from_millis(500).max(lease / 6)).saturating_add(late);
    longer.max(safe_eviction(lease, late))
}

/// L(1+r)/(1−r) + late: the shortest safe D. The observer's clock may be the fast one, and count the lateness too.
pub fn safe_eviction(lease: Duration, late: Duration) -> Duration {
    // Both come from the engine, where anything may have been written.
    let (lease, late) = (lease.saturating_mul(1000 + RATE_ERROR), late.saturating_mul(1000 + RATE_ERROR));
    (lease / (1000 - RATE_ERROR)).saturating_add(late / 1000)
}

/// How long after their end a node's own addresses are gone for certain, although its clock may be the fast one.
pub fn over(late: Duration) -> Duration {
    late * (1000 + 2 * RATE_ERROR) / 1000
}

/// How long the engine must have answered an observer before it evicts anyone: two heartbeats and an attempt.
pub fn settle(heartbeat: Duration) -> Duration {
    2 * heartbeat + ATTEMPT
}

/// What an observer saw of the beats and of the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Patience {
    seen: BTreeMap<Name, (Arc<str>, BootTime)>,
    changed: BTreeSet<Name>,
    longest: Duration,
    answered: Option<BootTime>,
    answering_since: BootTime,
}

impl Patience {
    /// The engine answered.
    pub fn answered(&mut self, now: BootTime, settle: Duration) {
        if self.answered.is_none_or(|last| now.since(last) > settle) {
            self.answering_since = now;
        }
        self.answered = Some(now);
    }

    /// Learns an entry of a beat.
    pub fn observe(&mut self, now: BootTime, entry: &Entry, rules: &Rules) {
        let Key::Beat(name) = &entry.key else { return };
        match &entry.value {
            None => {
                self.seen.remove(name);
                self.changed.remove(name);
            }
            Some(value) => {
                if let Value::Beat(beat) = value {
                    self.longest = self.longest.max(rules.eviction(beat.lease(), beat.late()));
                }
                let known = self.seen.get(name);
                if known.is_none_or(|(text, _)| *text != entry.text) {
                    if known.is_some() {
                        self.changed.insert(Arc::clone(name));
                    }
                    self.seen.insert(Arc::clone(name), (Arc::clone(&entry.text), now));
                }
            }
        }
    }

    /// When a beat may be deleted, if it does not change until then. Not at all if this observer saw it in another state than
    /// the given one, or if the engine does not answer: a request that it performs later would come before the beat's node
    /// had its chance.
    pub fn evict_at(
        &self,
        now: BootTime,
        (name, entry, beat): (&Name, &Entry, &Beat),
        heartbeat: Duration,
        rules: &Rules,
    ) -> Option<BootTime> {
        let (_, at) = self.seen.get(name).filter(|(text, _)| *text == entry.text)?;
        let silent = at.after(rules.eviction(beat.lease(), beat.late()));
        if !rules.settle {
            return Some(silent);
        }
        let settle = settle(heartbeat);
        let answers = self.answered.is_some_and(|last| now.since(last) <= settle);
        answers.then(|| silent.max(self.answering_since.after(settle)))
    }

    /// When this observer saw the newest change of a node's beat.
    pub fn seen_at(&self, name: &Name) -> Option<BootTime> {
        self.seen.get(name).map(|(_, at)| *at)
    }

    /// When the engine answered last.
    pub fn answered_at(&self) -> Option<BootTime> {
        self.answered
    }

    /// Whether the beat has changed since it was first seen: its node lives.
    pub fn has_changed(&self, name: &Name) -> bool {
        self.changed.contains(name)
    }

    /// The longest D of any beat ever seen.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// Forgets all beats: the engine has lost data.
    pub fn forget(&mut self) {
        *self = Patience { longest: self.longest, answered: self.answered, ..Patience::default() };
        self.answering_since = self.answered.unwrap_or_default();
    }
}

/// The nodes in the order of their hashes, as a ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ring(BTreeSet<(u64, Name)>);

impl Ring {
    /// Adds or removes a node. Returns whether that is a change.
    pub fn set(&mut self, name: &Name, is_present: bool) -> bool {
        let place = (super::placement::hash(name.as_bytes()), Arc::clone(name));
        if is_present { self.0.insert(place) } else { self.0.remove(&place) }
    }

    /// The nodes that `name` monitors: all others, or in a large cluster the five before it on the ring.
    pub fn monitored_by(&self, name: &Name) -> Vec<Name> {
        let place = (super::placement::hash(name.as_bytes()), Arc::clone(name));
        let limit = if self.0.len() <= ALL_MONITOR_ALL { self.0.len() } else { MONITORS };
        let before = self.0.range(..&place).rev().chain(self.0.range(&place..).rev());
        before.map(|(_, node)| node).filter(|node| *node != name).take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FENCED: Duration = Duration::from_millis(10);

    #[test]
    fn the_profiles_have_the_heartbeat_and_the_patience_of_the_design() {
        for (lease, heartbeat, patience) in [(3, 500, 3_510), (6, 1_000, 7_010), (15, 2_500, 17_510)] {
            let lease = Duration::from_secs(lease);
            assert_eq!((lease / 6).as_millis(), heartbeat);
            assert_eq!(eviction(lease, FENCED).as_millis(), patience);
            assert!(eviction(lease, FENCED) >= safe_eviction(lease, FENCED));
            assert!(
                lease >= lease / 6 + ATTEMPT + Duration::from_secs(1),
                "an engine may stall for a second"
            );
        }
        assert_eq!(safe_eviction(Duration::from_secs(199), Duration::ZERO), Duration::from_secs(201));
        assert_eq!(settle(Duration::from_secs(1)), Duration::from_millis(2_800));
        let longest = Duration::from_millis(u64::MAX);
        assert!(eviction(longest, longest) > longest);
    }

    #[test]
    fn the_patience_is_safe_for_every_lease_and_lateness() {
        for lease in 3..=3_600 {
            for late in [10, 15, 1_140, 15_000] {
                let (lease, late) = (Duration::from_secs(lease), Duration::from_millis(late));
                assert!(eviction(lease, late) >= safe_eviction(lease, late));
            }
        }
    }

    #[test]
    fn five_nodes_monitor_each_node_of_a_large_cluster() {
        for (nodes, monitors) in [(2, 1), (16, 15), (17, 5), (1_000, 5)] {
            let mut ring = Ring::default();
            let names: Vec<Name> = (0..nodes).map(|node| format!("n{node}").into()).collect();
            assert!(names.iter().all(|name| ring.set(name, true)));
            let mut count: BTreeMap<Name, usize> = BTreeMap::new();
            for name in names.iter().flat_map(|name| ring.monitored_by(name)) {
                *count.entry(name).or_default() += 1;
            }
            assert!(count.len() == nodes && count.values().all(|count| *count == monitors), "{nodes}");
        }
    }
}
