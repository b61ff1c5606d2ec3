//! Counts renewals, expiries, conflicts and restorations of addresses, and repairs of the fence, for metrics.

use portreeve_protocol::metrics::AddressCounts;

use super::lease::LeaseState;
use super::lease_table::LeaseTable;
use crate::counter::Counter;
use crate::sys::BootTime;

/// The counters since the start.
#[derive(Debug, Default)]
pub(super) struct AddressCounters {
    /// Renewed leases.
    pub renewals: Counter,
    /// Expired leases.
    pub expired: Counter,
    /// Conflicts with another host.
    pub conflicts: Counter,
    /// Missing addresses that were restored.
    pub restored: Counter,
    /// How often the fence was built again after another program had removed parts of it.
    pub fence_repairs: Counter,
}

impl AddressCounters {
    /// Converts them to the wire message, with the state of the table.
    pub fn to_wire(&self, table: &LeaseTable) -> AddressCounts {
        let now = BootTime::now();
        let in_state = |state| table.iter().filter(|lease| lease.state == state).count() as u64;
        let soonest = table.next_deadline().map(|deadline| now.duration_until(deadline).as_millis());
        AddressCounts {
            held: in_state(LeaseState::Held),
            adding: in_state(LeaseState::Probing) + in_state(LeaseState::Adding),
            missing: in_state(LeaseState::Missing),
            next_expiry_ms: soonest.map(|millis| u64::try_from(millis).unwrap_or(u64::MAX)),
            renewals: self.renewals.get(),
            expired: self.expired.get(),
            conflicts: self.conflicts.get(),
            restored: self.restored.get(),
            fence_repairs: self.fence_repairs.get(),
        }
    }
}
