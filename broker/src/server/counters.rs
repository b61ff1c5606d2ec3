//! What is counted while the broker serves: plain numbers of one thread, so that counting costs no request anything.

use std::time::Duration;

use portreeve_protocol::metrics::OperationCounts;
use portreeve_protocol::{FaultCode, Kind, List, Text};

use crate::counter::Counter;

/// The upper bounds of the latency buckets, in microseconds.
pub const BOUNDS_US: [u64; 13] =
    [10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// More than the number of any operation.
const OPERATIONS: usize = 32;

/// Everything that is counted here. What is counted at its own place is asked for there.
#[derive(Debug, Default)]
pub struct Counters {
    operations: [Operation; OPERATIONS],
    /// Sessions that began.
    pub opened: Counter,
    /// Peers that got none.
    pub turned_away: Counter,
    /// Sessions that ended because of a packet that was no request.
    pub malformed: Counter,
}

#[derive(Debug, Default)]
struct Operation {
    granted: Counter,
    denied: Counter,
    quota: Counter,
    failed: Counter,
    latencies: [Counter; BOUNDS_US.len() + 1],
    micros: Counter,
}

impl Counters {
    /// Counts what became of a request, or of one part of a batch.
    pub fn outcome(&self, kind: Kind, fault: Option<FaultCode>) {
        let Some(operation) = self.operations.get(usize::from(kind.0)) else { return };
        match fault {
            None => operation.granted.up(),
            Some(FaultCode::Denied) => operation.denied.up(),
            Some(FaultCode::Quota) => operation.quota.up(),
            Some(_) => operation.failed.up(),
        }
    }

    /// Counts how long a request took.
    pub fn latency(&self, kind: Kind, took: Duration) {
        let Some(operation) = self.operations.get(usize::from(kind.0)) else { return };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS_US.len());
        operation.latencies.get(bucket).into_iter().for_each(Counter::up);
        operation.micros.add(usize::try_from(micros).unwrap_or(usize::MAX));
    }

    /// What was counted of an operation.
    pub fn of(&self, kind: Kind, name: &str) -> Option<OperationCounts> {
        let operation = self.operations.get(usize::from(kind.0))?;
        Some(OperationCounts {
            name: Text::clipped(name),
            granted: operation.granted.get(),
            denied: operation.denied.get(),
            quota: operation.quota.get(),
            failed: operation.failed.get(),
            latencies: List::first_of(operation.latencies.iter().map(Counter::get)),
            sum_us: operation.micros.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portreeve_protocol::message::{OPERATIONS as KNOWN, Operation as _, Ping};

    #[test]
    fn every_operation_is_counted() {
        let counters = Counters::default();
        for (kind, name) in KNOWN {
            assert!(counters.of(*kind, name).is_some(), "{name} has too high a number");
        }
    }

    #[test]
    fn a_request_is_in_the_bucket_whose_bound_it_does_not_exceed() {
        let counters = Counters::default();
        for micros in [0, 10, 11, 10_000_000, 10_000_001] {
            counters.latency(Ping::KIND, Duration::from_micros(micros));
        }
        let counts = counters.of(Ping::KIND, Ping::NAME).unwrap();
        assert_eq!(counts.latencies.to_vec(), [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(counts.sum_us, 20_000_022);
    }
}
