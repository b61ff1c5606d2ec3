//! What must always hold, measured by the simulation's own clock, which no host has.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::core::record::{Entry, Key, Phase, Value};
use crate::engine::memory::Store;

/// The host at that place and, until it is known to end earlier, the instant in nanoseconds at which it stops answering.
type Answering = Vec<(usize, u64)>;

/// Who answers for which address, and what went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Referee {
    answering: BTreeMap<IpAddr, Answering>,
    epochs: BTreeMap<IpAddr, u64>,
    /// The last instant at which a host began to answer for any address.
    pub last_start: u64,
    /// How often a host began to answer for an address.
    pub starts: u64,
    /// The first violations.
    pub violations: Vec<String>,
}

impl Referee {
    fn violation(&mut self, now: u64, text: String) {
        const MAX: usize = 10;
        if self.violations.len() < MAX {
            self.violations.push(format!("{:.3} s: {text}", seconds(now)));
        }
    }

    /// A host begins to answer for an address, or will do so for longer.
    pub fn answers(&mut self, now: u64, host: usize, address: IpAddr, end: u64) {
        let answering = self.answering.entry(address).or_default();
        answering.retain(|(_, end)| *end > now);
        let others: Vec<usize> =
            answering.iter().map(|(other, _)| *other).filter(|other| *other != host).collect();
        match answering.iter_mut().find(|(other, _)| *other == host) {
            Some((_, known)) => *known = end,
            None => {
                answering.push((host, end));
                (self.last_start, self.starts) = (now, self.starts + 1);
            }
        }
        for other in others {
            self.violation(now, format!("{address} is on n{other} and n{host} at once"));
        }
    }

    /// A host stops answering for an address.
    pub fn stops(&mut self, host: usize, address: IpAddr) {
        if let Some(answering) = self.answering.get_mut(&address) {
            answering.retain(|(other, _)| *other != host);
        }
    }

    /// Who answers for an address.
    pub fn hosts(&self, now: u64, address: IpAddr) -> Vec<usize> {
        let answering = self.answering.get(&address).into_iter().flatten();
        answering.filter(|(_, end)| *end > now).map(|(host, _)| *host).collect()
    }

    /// How many addresses each host answers for.
    pub fn counts(&self, now: u64) -> HashMap<usize, usize> {
        let mut counts = HashMap::new();
        for (host, _) in self.answering.values().flatten().filter(|(_, end)| *end > now) {
            *counts.entry(*host).or_default() += 1;
        }
        counts
    }

    /// The engine has performed a transaction.
    pub fn changed(&mut self, now: u64, store: &Store, entries: &[Arc<Entry>]) {
        for entry in entries {
            let Key::Claim(address) = entry.key else { continue };
            let Some(Value::Claim(claim)) = &entry.value else {
                self.violation(now, format!("the claim of {address} was deleted or is unreadable"));
                continue;
            };
            let last = self.epochs.insert(address, claim.epoch).unwrap_or_default();
            if claim.epoch <= last {
                self.violation(now, format!("the epoch of {address} went from {last} to {}", claim.epoch));
            }
            let beat = store.get(&Key::Beat(Arc::clone(&claim.node)));
            let lives = beat.is_some_and(|beat| beat.created == claim.session.created);
            if claim.phase != Phase::Free && !lives {
                let node = &claim.node;
                self.violation(now, format!("{node} owns {address} with a session that does not live"));
            }
        }
    }

    /// The engine has lost data: epochs may repeat.
    pub fn restored(&mut self) {
        self.epochs.clear();
    }

    /// The liveness that was expected is missing.
    pub fn missing(&mut self, now: u64, text: String) {
        self.violation(now, text);
    }
}

/// Nanoseconds in seconds, for people.
pub fn seconds(nanoseconds: u64) -> f64 {
    std::time::Duration::from_nanos(nanoseconds).as_secs_f64()
}
