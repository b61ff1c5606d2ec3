//! The shares of the descriptor store: which listeners are stored if not all fit.
//!
//! A few entries are the broker's own. Static listeners come first and displace others. A quarter of the rest is reserved
//! for static listeners and the worker. A user may store another listener while it has fewer than there are free entries
//! beyond the reserve: whoever comes first gets at most half of them, and something is always left for the next user. So
//! may the worker beyond its reserve.
//!
//! Promises: data only. It is bounded by the number of listeners.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use portreeve_protocol::message::ListenerId;

use super::fdstore_name::MAX_NAME;

/// The entries for descriptors of the broker's own.
const OWN: usize = 4;
/// The bytes that the names of all entries may have together. The service manager passes them in one variable of the
/// environment, which the kernel limits to 128 KiB (MAX_ARG_STRLEN, see execve(2)); its name and the entries of the
/// broker's own need room too.
const MAX_NAMES: usize = 128 * 1024 - (OWN + 1) * (MAX_NAME + 1);

/// Who has a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// The static listeners of the configuration.
    Static,
    /// The worker, for the listeners that it requested.
    Worker,
    /// A user of the control socket.
    User(u32),
}

impl fmt::Display for Party {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Party::Static => out.write_str("the configuration"),
            Party::Worker => out.write_str("the worker"),
            Party::User(user) => write!(out, "user {user}"),
        }
    }
}

/// A listener that is stored, or that should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredListener {
    /// Whose share it is in.
    pub party: Party,
    /// Its name in the store.
    pub name: String,
}

/// Which listeners are stored, and which wait for room.
#[derive(Debug)]
pub struct Shares {
    /// The entries of the store.
    capacity: usize,
    stored: BTreeMap<ListenerId, StoredListener>,
    /// The bytes of their names, with a separator each.
    name_bytes: usize,
    held: BTreeMap<Party, usize>,
    waiting: BTreeMap<Party, BTreeSet<ListenerId>>,
}

impl Shares {
    /// No listener yet, in a store with this many entries.
    pub fn new(capacity: usize) -> Self {
        let (stored, held, waiting) = Default::default();
        Self { capacity, stored, name_bytes: 0, held, waiting }
    }

    /// The entries of the store.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The entries that are not the broker's own.
    fn room(&self) -> usize {
        self.capacity - OWN.min(self.capacity / 4)
    }

    /// The entries that are free, for names of any length.
    fn free(&self) -> usize {
        let free = self.room().saturating_sub(self.stored.len());
        free.min(MAX_NAMES.saturating_sub(self.name_bytes) / (MAX_NAME + 1))
    }

    fn held(&self, party: Party) -> usize {
        self.held.get(&party).copied().unwrap_or_default()
    }

    /// The entries that are reserved for the worker: the static listeners use the reserve too.
    fn reserved_for_worker(&self) -> usize {
        // Long names leave fewer entries than the store has.
        let usable = self.stored.len() + self.free();
        (usable / 4).saturating_sub(self.held(Party::Static))
    }

    /// The free entries that are not reserved.
    fn free_for_all(&self) -> usize {
        self.free().saturating_sub(self.reserved_for_worker().saturating_sub(self.held(Party::Worker)))
    }

    /// Whether there is room for another listener in this share.
    pub fn admits(&self, party: Party) -> bool {
        let beyond_reserve = match party {
            Party::Static => return self.free() > 0,
            Party::Worker => self.held(party).checked_sub(self.reserved_for_worker()),
            Party::User(_) => Some(self.held(party)),
        };
        beyond_reserve.map_or(self.free() > 0, |held| held < self.free_for_all())
    }

    /// Whether there is an entry for a listener that is in the store already.
    pub fn has_free_entry(&self) -> bool {
        self.free() > 0
    }

    /// The listener that a static one displaces: the last one of whoever has most.
    pub fn to_displace(&self) -> Option<ListenerId> {
        let others = self.held.iter().filter(|(party, _)| **party != Party::Static);
        let (largest, _) = others.max_by_key(|(_, count)| **count)?;
        let mut stored = self.stored.iter().rev();
        stored.find(|(_, listener)| listener.party == *largest).map(|(id, _)| *id)
    }

    /// A stored listener.
    pub fn get(&self, id: ListenerId) -> Option<&StoredListener> {
        self.stored.get(&id)
    }

    /// Records that a listener is stored.
    pub fn insert(&mut self, id: ListenerId, listener: StoredListener) {
        self.remove(id);
        self.name_bytes += listener.name.len() + 1;
        *self.held.entry(listener.party).or_default() += 1;
        self.stored.insert(id, listener);
    }

    /// Records that a listener is neither stored nor waits.
    pub fn remove(&mut self, id: ListenerId) {
        if let Some(listener) = self.stored.remove(&id) {
            self.name_bytes -= listener.name.len() + 1;
            if let Some(count) = self.held.get_mut(&listener.party) {
                *count -= 1;
            }
            self.held.retain(|_, count| *count > 0);
        }
        self.waiting.values_mut().for_each(|ids| {
            ids.remove(&id);
        });
        self.waiting.retain(|_, ids| !ids.is_empty());
    }

    /// Records that a listener waits for room.
    pub fn wait(&mut self, id: ListenerId, party: Party) {
        self.remove(id);
        self.waiting.entry(party).or_default().insert(id);
    }

    /// The next listener that waits and that there is room for now: of the static ones, of the worker, then of the user
    /// who has fewest.
    pub fn next_waiting(&self) -> Option<ListenerId> {
        let parties = self.waiting.keys().filter(|party| self.admits(**party));
        let order = |party: &&Party| match party {
            Party::Static => (0, 0),
            Party::Worker => (1, 0),
            Party::User(_) => (2, self.held(**party)),
        };
        let next = parties.min_by_key(order)?;
        self.waiting.get(next)?.first().copied()
    }

    /// A sentence for the operator about the listeners that wait, if any do.
    pub fn warning(&self) -> Option<String> {
        /// The most parties that are named.
        const NAMED: usize = 4;
        let mut parties: Vec<(usize, Party)> =
            self.waiting.iter().map(|(party, ids)| (ids.len(), *party)).collect();
        parties.sort_by_key(|(count, party)| (std::cmp::Reverse(*count), *party));
        let total: usize = parties.iter().map(|(count, _)| count).sum();
        let named = parties.iter().take(NAMED).map(|(count, party)| format!("{count} of {party}"));
        let mut named: Vec<String> = named.collect();
        if parties.len() > NAMED {
            named.push(format!("those of {} others", parties.len() - NAMED));
        }
        (total > 0).then(|| {
            format!(
                "the service manager's descriptor store has no room for {total} listeners, which close when the broker is \
                 restarted: {}; raise FileDescriptorStoreMax=",
                named.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Party = Party::User(1000);
    const B: Party = Party::User(1001);

    /// Stores as many listeners as the share admits, and returns how many.
    fn fill(shares: &mut Shares, party: Party, next: &mut u64) -> usize {
        let mut count = 0;
        while shares.admits(party) {
            *next += 1;
            shares.insert(ListenerId(*next), StoredListener { party, name: format!("name-{next}") });
            count += 1;
        }
        count
    }

    #[test]
    fn one_user_leaves_room_for_the_others_and_the_reserve() {
        let (mut shares, mut next) = (Shares::new(500), 0);
        // 4 of the broker's own, a quarter of 496 in reserve, half of the other 372.
        assert_eq!(fill(&mut shares, A, &mut next), 186);
        assert_eq!(fill(&mut shares, B, &mut next), 93);
        assert!((0..20).all(|user| fill(&mut shares, Party::User(user), &mut next) < 93));
        assert!(fill(&mut shares, Party::Worker, &mut next) >= 124);
        let used = shares.stored.len();
        assert!(used <= 496);
        // Static listeners have the free entries, then displace.
        assert_eq!(fill(&mut shares, Party::Static, &mut next), 496 - used);
        let displaced = shares.to_displace().unwrap();
        assert_eq!(shares.get(displaced).unwrap().party, A);
        shares.remove(displaced);
        assert!(shares.admits(Party::Static) && !shares.admits(A));
    }

    #[test]
    fn the_worker_leaves_room_for_users() {
        let (mut shares, mut next) = (Shares::new(500), 0);
        assert_eq!(fill(&mut shares, Party::Worker, &mut next), 124 + 186);
        assert_eq!(fill(&mut shares, A, &mut next), 93);
    }

    #[test]
    fn the_user_who_has_fewest_is_next_and_static_listeners_come_first() {
        let (mut shares, mut next) = (Shares::new(500), 0);
        fill(&mut shares, A, &mut next);
        for (id, party) in [(9001, A), (9002, B), (9003, Party::Worker), (9004, Party::Static)] {
            shares.wait(ListenerId(id), party);
        }
        let mut order = Vec::new();
        shares.remove(ListenerId(1));
        while let Some(id) = shares.next_waiting() {
            order.push(id.0);
            shares.remove(id);
        }
        assert_eq!(order, [9004, 9003, 9002, 9001]);
    }

    #[test]
    fn all_names_fit_into_one_variable() {
        let mut shares = Shares::new(10_000);
        let mut next = 0;
        for user in 0..100 {
            while shares.admits(Party::User(user)) {
                next += 1;
                let name = format!("{next:0>MAX_NAME$}");
                shares.insert(ListenerId(next), StoredListener { party: Party::User(user), name });
            }
        }
        let names: usize = shares.stored.values().map(|listener| listener.name.len() + 1).sum();
        assert_eq!(names, shares.name_bytes);
        assert!(names + "LISTEN_FDNAMES=".len() + OWN * (MAX_NAME + 1) < 128 * 1024, "{names}");
        assert!(next > 300, "{next}");
    }

    #[test]
    fn the_warning_names_those_with_most_listeners() {
        let mut shares = Shares::new(8);
        assert_eq!(shares.warning(), None);
        for id in 0..12 {
            shares.wait(ListenerId(id), Party::User(u32::try_from(id / 2).unwrap()));
        }
        let warning = shares.warning().unwrap();
        assert!(warning.contains("12 listeners") && warning.contains("2 of user 0"), "{warning}");
        assert!(warning.contains("those of 2 others") && warning.len() <= 256, "{warning}");
    }
}
