//! How many addresses each holder may have, so that no peer uses up what others share. Data only.
//!
//! Promises: a user leaves room for the worker and for root; the worker leaves room for root and for the users; one user
//! leaves at least as much free as it has. Root, the operator, may have every address that is free. The coordinator of a cluster
//! leaves less free, so that a host can take over what several hosts had.

use std::collections::HashMap;

use portreeve_protocol::{Fault, FaultCode};

use crate::holder::Holder;

/// The largest number of leases.
pub const MAX_LEASES: usize = 10_240;
/// Of these, at least this many are for root.
const FOR_ROOT: usize = MAX_LEASES / 16;
/// At least this many are for the worker.
const FOR_WORKER: usize = MAX_LEASES / 16;
/// At least this many are for all other users together; a coordinator leaves as many free.
const FOR_USERS: usize = MAX_LEASES / 8;

/// How many addresses a holder may have.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The largest number that the configuration allows it.
    pub max: usize,
    /// Whether it decides which addresses of a cluster this host has.
    pub is_coordinator: bool,
}

/// The number of leases of each holder.
#[derive(Debug, Default)]
pub(super) struct Shares {
    counts: HashMap<Holder, usize>,
    total: usize,
}

impl Shares {
    /// Counts one lease more.
    pub fn add(&mut self, holder: Holder) {
        *self.counts.entry(holder).or_default() += 1;
        self.total += 1;
    }

    /// Counts one lease less.
    pub fn subtract(&mut self, holder: Holder) {
        let Some(count) = self.counts.get_mut(&holder) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.counts.remove(&holder);
        }
        self.total = self.total.saturating_sub(1);
    }

    fn count(&self, holder: Holder) -> usize {
        self.counts.get(&holder).copied().unwrap_or_default()
    }

    /// How many more leases there can be, without those that are for holders other than this one.
    fn free(&self, holder: Holder) -> usize {
        let (root, worker) = (self.count(Holder::ROOT), self.count(Holder::Worker));
        let users = self.total.saturating_sub(root + worker);
        let (root, worker, users) = (
            FOR_ROOT.saturating_sub(root),
            FOR_WORKER.saturating_sub(worker),
            FOR_USERS.saturating_sub(users),
        );
        let for_others = match holder {
            Holder::ROOT => 0,
            Holder::Worker => root + users,
            Holder::User(_) => root + worker,
        };
        MAX_LEASES.saturating_sub(self.total + for_others)
    }

    /// Checks that a holder may have one more lease.
    ///
    /// # Errors
    /// Quota.
    pub fn check(&self, holder: Holder, limit: Limit, action: &str) -> Result<(), Fault> {
        let Limit { max, is_coordinator } = limit;
        let (held, free) = (self.count(holder), self.free(holder));
        let quota = |message: &str, remedy: &str| {
            Err(Fault::new(FaultCode::Quota, &format!("cannot {action}: {message}")).remedy(remedy))
        };
        if held >= max {
            let message = format!("{holder} holds {held} addresses, and its limit is {max}");
            return quota(&message, "remove some, or raise max_addresses in the broker scope");
        }
        if free == 0 {
            let message = match holder {
                Holder::ROOT => format!("the broker holds its limit of {MAX_LEASES} addresses"),
                _ => format!("the rest of the broker's {MAX_LEASES} addresses is kept for other peers"),
            };
            return quota(&message, "remove some first");
        }
        let leaves_enough = held < free || (is_coordinator && free > FOR_USERS);
        if matches!(holder, Holder::User(1..)) && !leaves_enough {
            let message = format!("{holder} holds {held} addresses, no fewer than are left for all users");
            return quota(&message, "remove some, or wait until other users have removed theirs");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds leases until the next one is refused, and returns their number.
    fn fill(shares: &mut Shares, holder: Holder) -> usize {
        fill_as(shares, holder, false)
    }

    fn fill_as(shares: &mut Shares, holder: Holder, is_coordinator: bool) -> usize {
        let (mut added, limit) = (0, Limit { max: usize::MAX, is_coordinator });
        while shares.check(holder, limit, "add").is_ok() {
            shares.add(holder);
            added += 1;
        }
        added
    }

    #[test]
    fn no_number_of_users_takes_what_is_for_the_worker_and_root() {
        let mut shares = Shares::default();
        let each: Vec<usize> = (1..=20).map(|uid| fill(&mut shares, Holder::User(uid))).collect();
        assert_eq!(each[..4], [4480, 2240, 1120, 560], "each takes half of what is left");
        assert_eq!(each.iter().sum::<usize>(), MAX_LEASES - FOR_ROOT - FOR_WORKER);
        assert_eq!(fill(&mut shares, Holder::Worker), FOR_WORKER);
        assert_eq!(fill(&mut shares, Holder::ROOT), FOR_ROOT);
        assert_eq!(shares.total, MAX_LEASES);
    }

    #[test]
    fn the_worker_leaves_room_for_root_and_the_users() {
        let mut shares = Shares::default();
        assert_eq!(fill(&mut shares, Holder::Worker), MAX_LEASES - FOR_ROOT - FOR_USERS);
        assert_eq!(fill(&mut shares, Holder::User(8)), FOR_USERS / 2);
        assert_eq!(fill(&mut shares, Holder::User(9)), FOR_USERS / 4);
        assert_eq!(fill(&mut shares, Holder::ROOT), FOR_ROOT + FOR_USERS / 4);
    }

    #[test]
    fn the_coordinator_may_have_more_than_half_and_leaves_room_for_all_others() {
        let mut shares = Shares::default();
        let coordinator = Holder::User(7);
        let most = MAX_LEASES - FOR_ROOT - FOR_WORKER - FOR_USERS;
        assert_eq!(fill_as(&mut shares, coordinator, true), most);
        assert_eq!(fill(&mut shares, coordinator), 0);
        assert_eq!(fill(&mut shares, Holder::User(8)), FOR_USERS / 2);
        assert_eq!(fill_as(&mut shares, coordinator, true), 0, "the rest is for further users");
        assert_eq!(fill(&mut shares, Holder::User(9)), FOR_USERS / 4);
        assert_eq!(fill(&mut shares, Holder::Worker), FOR_WORKER + FOR_USERS / 4, "the users have enough");
        assert_eq!(fill(&mut shares, Holder::ROOT), FOR_ROOT);
    }

    #[test]
    fn several_coordinators_leave_room_for_users() {
        let mut shares = Shares::default();
        assert_eq!(fill(&mut shares, Holder::User(6)), 4480);
        let each: Vec<usize> = (7..10).map(|uid| fill_as(&mut shares, Holder::User(uid), true)).collect();
        assert_eq!(
            each,
            [3200, 640, 320],
            "the first one leaves 1,280, and the others have no more than other users"
        );
        assert_eq!(fill(&mut shares, Holder::User(10)), 160);
    }

    #[test]
    fn root_may_have_every_address_and_a_removal_makes_room_again() {
        let mut shares = Shares::default();
        assert_eq!(fill(&mut shares, Holder::ROOT), MAX_LEASES);
        assert_eq!(fill(&mut shares, Holder::User(8)), 0);
        (0..FOR_WORKER + 2).for_each(|_| shares.subtract(Holder::ROOT));
        assert_eq!(fill(&mut shares, Holder::User(8)), 1);
        (0..MAX_LEASES).for_each(|_| shares.subtract(Holder::ROOT));
        shares.subtract(Holder::User(8));
        assert!(shares.counts.is_empty() && shares.total == 0, "{shares:?}");
    }
}
