//! The epochs of removed addresses: a holder with an older epoch does not get the address again. Data only.
//!
//! Promises: a holder's own requests alone change the epochs that count for that holder, except for those of root, which
//! count for every holder. The table is bounded. A holder whose share is full loses the oldest of its own epochs and none
//! of another's, unless another user has less than [`MIN_SHARE`] and the table is full: then the largest share loses one.
//!
//! Forgetting is the safe choice when a share is full: to refuse the removal would keep an address on this host that its
//! holder gives up, and a lease that expires cannot be refused its end. A forgotten epoch is what a restart forgets too.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::holder::Holder;

/// The largest number of removed addresses that are remembered.
pub const MAX_PAST_EPOCHS: usize = 65_536;
/// The part of it that only the worker can use, and the part that only root can use.
const RESERVE: usize = MAX_PAST_EPOCHS / 8;
/// The part of all other users together. One user may use as much of it as it leaves free: at most half.
const USER_POOL: usize = MAX_PAST_EPOCHS - 2 * RESERVE;
/// What a user may use in any case, even if other users have filled the pool.
const MIN_SHARE: usize = 64;

/// What is remembered of a removed address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PastLease {
    /// Its newest epoch.
    pub epoch: u64,
    /// Whether its lease expired; otherwise it was removed on request.
    pub expired: bool,
}

/// The order in which a holder's entries are forgotten: those without an epoch first, then the oldest.
type Age = (bool, u64);

/// The removed addresses of one holder.
#[derive(Debug, Default)]
struct Share {
    by_address: HashMap<IpAddr, (Age, PastLease)>,
    by_age: BTreeMap<Age, IpAddr>,
}

impl Share {
    fn insert(&mut self, address: IpAddr, age: Age, past: PastLease) {
        self.by_age.insert(age, address);
        self.by_address.insert(address, (age, past));
    }

    fn remove(&mut self, address: IpAddr) -> Option<PastLease> {
        let (age, past) = self.by_address.remove(&address)?;
        self.by_age.remove(&age);
        Some(past)
    }
}

/// The removed addresses of all holders.
#[derive(Debug, Default)]
pub(super) struct PastEpochs {
    shares: HashMap<Holder, Share>,
    /// The number of entries of all users other than root.
    of_users: usize,
    last: u64,
}

impl PastEpochs {
    /// What is remembered of an address that this holder had.
    pub fn get(&self, address: IpAddr, holder: Holder) -> Option<PastLease> {
        Some(self.shares.get(&holder)?.by_address.get(&address)?.1)
    }

    /// The newest epoch that counts for a request of this holder: its own, or root's.
    pub fn newest(&self, address: IpAddr, holder: Holder) -> u64 {
        let epochs = [holder, Holder::ROOT].map(|one| self.get(address, one).map_or(0, |past| past.epoch));
        epochs.into_iter().max().unwrap_or(0)
    }

    /// Remembers a removed address of a holder. Its epoch never decreases.
    pub fn record(&mut self, address: IpAddr, holder: Holder, past: PastLease) {
        let known = self.remove(address, holder);
        let epoch = known.map_or(past.epoch, |known| known.epoch.max(past.epoch));
        if epoch == 0 && !past.expired {
            return; // This says nothing that an unknown address would not.
        }
        self.make_room(holder);
        self.last += 1;
        self.of_users += usize::from(!is_reserved(holder));
        let share = self.shares.entry(holder).or_default();
        share.insert(address, (epoch != 0, self.last), PastLease { epoch, ..past });
    }

    /// Every entry, those first that would be forgotten first.
    pub fn by_age(&self) -> Vec<(IpAddr, Holder, PastLease)> {
        let entries = |(holder, share): (&Holder, &Share)| {
            let (holder, by_address) = (*holder, share.by_address.iter());
            by_address
                .map(move |(address, (age, past))| (*age, (*address, holder, *past)))
                .collect::<Vec<_>>()
        };
        let mut all: Vec<_> = self.shares.iter().flat_map(entries).collect();
        all.sort_unstable_by_key(|(age, _)| *age);
        all.into_iter().map(|(_, entry)| entry).collect()
    }

    fn count(&self, holder: Holder) -> usize {
        self.shares.get(&holder).map_or(0, |share| share.by_address.len())
    }

    /// Makes room for one more entry of a holder.
    fn make_room(&mut self, holder: Holder) {
        let held = self.count(holder);
        if is_reserved(holder) {
            if held >= RESERVE {
                self.forget_oldest(holder);
            }
            return;
        }
        let free = USER_POOL.saturating_sub(self.of_users);
        if held >= free.max(MIN_SHARE) {
            self.forget_oldest(holder);
        } else if free == 0 {
            let users = self.shares.iter().filter(|(holder, _)| !is_reserved(**holder));
            let largest = users.max_by_key(|(_, share)| share.by_address.len()).map(|(holder, _)| *holder);
            if let Some(largest) = largest {
                self.forget_oldest(largest);
            }
        }
    }

    fn forget_oldest(&mut self, holder: Holder) {
        let oldest = self.shares.get(&holder).and_then(|share| share.by_age.values().next().copied());
        if let Some(address) = oldest {
            self.remove(address, holder);
        }
    }

    fn remove(&mut self, address: IpAddr, holder: Holder) -> Option<PastLease> {
        let share = self.shares.get_mut(&holder)?;
        let past = share.remove(address)?;
        if share.by_address.is_empty() {
            self.shares.remove(&holder);
        }
        self.of_users -= usize::from(!is_reserved(holder));
        Some(past)
    }
}

/// Whether a holder has a part of the table for itself.
fn is_reserved(holder: Holder) -> bool {
    matches!(holder, Holder::Worker | Holder::ROOT)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const A: Holder = Holder::User(1001);
    const B: Holder = Holder::User(1002);

    fn address(number: usize) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).unwrap()).into()
    }

    fn fill(table: &mut PastEpochs, holder: Holder, count: usize) {
        let removed = PastLease { epoch: 7, expired: false };
        (0..count).for_each(|number| table.record(address(number), holder, removed));
    }

    fn check_counts(table: &PastEpochs) {
        let users = table.shares.iter().filter(|(holder, _)| !is_reserved(**holder));
        assert_eq!(table.of_users, users.map(|(_, share)| share.by_age.len()).sum::<usize>());
        assert!(table.shares.values().all(|share| share.by_age.len() == share.by_address.len()));
        assert!(table.by_age().len() <= MAX_PAST_EPOCHS);
    }

    #[test]
    fn a_holder_that_removes_ever_more_addresses_forgets_only_its_own() {
        let mut table = PastEpochs::default();
        for holder in [A, Holder::Worker, Holder::ROOT] {
            table.record(address(0), holder, PastLease { epoch: 5, expired: true });
        }
        fill(&mut table, B, MAX_PAST_EPOCHS);
        for holder in [A, Holder::Worker, Holder::ROOT] {
            let past = table.get(address(0), holder);
            assert_eq!(past, Some(PastLease { epoch: 5, expired: true }), "{holder}");
        }
        assert_eq!(table.get(address(0), B), None, "its oldest");
        assert_eq!(table.count(B), USER_POOL / 2);
        assert!(table.get(address(MAX_PAST_EPOCHS - 1), B).is_some(), "its newest");
        check_counts(&table);
    }

    #[test]
    fn many_users_leave_the_reserve_and_a_share_for_the_next_one() {
        let mut table = PastEpochs::default();
        // Each uses half of what is left, until little is.
        (1..=32).for_each(|uid: u32| fill(&mut table, Holder::User(uid), (USER_POOL >> uid.min(8)) + 1));
        fill(&mut table, Holder::User(33), USER_POOL);
        assert_eq!(table.of_users, USER_POOL);
        fill(&mut table, A, MIN_SHARE);
        assert_eq!(table.count(A), MIN_SHARE);
        for holder in [Holder::Worker, Holder::ROOT] {
            fill(&mut table, holder, RESERVE + 1);
            assert_eq!(table.count(holder), RESERVE);
        }
        check_counts(&table);
    }

    #[test]
    fn what_has_no_epoch_is_forgotten_first_or_not_kept() {
        let mut table = PastEpochs::default();
        table.record(address(1), A, PastLease { epoch: 0, expired: false });
        assert!(table.by_age().is_empty());
        table.record(address(1), Holder::ROOT, PastLease { epoch: 9, expired: false });
        table.record(address(2), Holder::ROOT, PastLease { epoch: 0, expired: true });
        table.forget_oldest(Holder::ROOT);
        assert_eq!(table.newest(address(1), Holder::ROOT), 9);
        assert_eq!(table.get(address(2), Holder::ROOT), None);
        check_counts(&table);
    }

    #[test]
    fn an_epoch_counts_for_its_holder_and_that_of_root_for_every_holder() {
        let mut table = PastEpochs::default();
        table.record(address(1), B, PastLease { epoch: u64::MAX, expired: false });
        assert_eq!((table.newest(address(1), A), table.newest(address(1), B)), (0, u64::MAX));
        table.record(address(1), A, PastLease { epoch: 5, expired: false });
        table.record(address(1), A, PastLease { epoch: 4, expired: true });
        assert_eq!(table.get(address(1), A), Some(PastLease { epoch: 5, expired: true }));
        table.record(address(1), Holder::ROOT, PastLease { epoch: 8, expired: false });
        assert_eq!((table.newest(address(1), A), table.newest(address(1), Holder::Worker)), (8, 8));
        check_counts(&table);
    }
}
