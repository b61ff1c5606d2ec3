//! How many addresses there are, and what became of them until now.

use portreeve_protocol::metrics::AddressCounts;

use super::lease::State;
use super::{Addresses, BootTime};
use crate::counter::Counter;

/// What was counted since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Leases that were renewed.
    pub renewals: Counter,
    /// Leases that ended because nobody renewed them.
    pub expired: Counter,
    /// Other hosts that have an address.
    pub conflicts: Counter,
    /// Addresses that were put back.
    pub put_back: Counter,
}

impl Addresses {
    /// As metrics tell it.
    pub fn counted(&self) -> AddressCounts {
        let (now, table, counts) = (BootTime::now(), self.table.borrow(), &self.counts);
        let of = |state| table.iter().filter(|lease| lease.state == state).count() as u64;
        let soonest = table.next_end().map(|end| now.until(end).as_millis());
        AddressCounts {
            held: of(State::Held),
            adding: of(State::Adding),
            missing: of(State::Missing),
            soonest_ms: soonest.map(|left| u64::try_from(left).unwrap_or(u64::MAX)),
            renewals: counts.renewals.get(),
            expired: counts.expired.get(),
            conflicts: counts.conflicts.get(),
            put_back: counts.put_back.get(),
        }
    }
}
