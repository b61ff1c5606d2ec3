//! The counters of the sessions and of each operation, for the metrics.

use std::time::Duration;

use portreeve_protocol::metrics::OperationCounts;
use portreeve_protocol::{FaultCode, Kind, List, Text};

use crate::counter::Counter;

/// The upper bounds of the latency buckets, in microseconds.
pub const BOUNDS_US: [u64; 13] =
    [10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// A bound above the kind of any operation.
const KIND_BOUND: usize = 32;

/// The counters of the server. Addresses, events and accounts have counters of their own.
#[derive(Debug, Default)]
pub struct Counters {
    operations: [Operation; KIND_BOUND],
    /// Sessions that began.
    pub opened: Counter,
    /// Connections that got no session.
    pub rejected: Counter,
    /// Sessions that ended because a packet was not a valid request.
    pub malformed: Counter,
}

#[derive(Debug, Default)]
struct Operation {
    granted: Counter,
    denied: Counter,
    quota: Counter,
    failed: Counter,
    latencies: [Counter; BOUNDS_US.len() + 1],
    sum_us: Counter,
}

impl Counters {
    /// Counts the result of a request, or of one part of it.
    pub fn add_outcome(&self, kind: Kind, fault: Option<FaultCode>) {
        let Some(operation) = self.operations.get(usize::from(kind.0)) else { return };
        match fault {
            None => operation.granted.up(),
            Some(FaultCode::Denied) => operation.denied.up(),
            Some(FaultCode::Quota) => operation.quota.up(),
            Some(_) => operation.failed.up(),
        }
    }

    /// Counts how long a request took.
    pub fn add_latency(&self, kind: Kind, duration: Duration) {
        let Some(operation) = self.operations.get(usize::from(kind.0)) else { return };
        let duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.iter().position(|bound| duration_us <= *bound).unwrap_or(BOUNDS_US.len());
        operation.latencies.get(bucket).into_iter().for_each(Counter::up);
        operation.sum_us.add(usize::try_from(duration_us).unwrap_or(usize::MAX));
    }

    /// The counts of an operation.
    pub fn of(&self, kind: Kind, name: &str) -> Option<OperationCounts> {
        let operation = self.operations.get(usize::from(kind.0))?;
        Some(OperationCounts {
            name: Text::truncated(name),
            granted: operation.granted.get(),
            denied: operation.denied.get(),
            quota: operation.quota.get(),
            failed: operation.failed.get(),
            latencies: List::truncated(operation.latencies.iter().map(Counter::get)),
            sum_us: operation.sum_us.get(),
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
    fn a_latency_is_counted_in_its_bucket() {
        let counters = Counters::default();
        for micros in [0, 10, 11, 10_000_000, 10_000_001] {
            counters.add_latency(Ping::KIND, Duration::from_micros(micros));
        }
        let counts = counters.of(Ping::KIND, Ping::NAME).unwrap();
        assert_eq!(counts.latencies.to_vec(), [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(counts.sum_us, 20_000_022);
    }
}
