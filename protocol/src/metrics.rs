//! The broker's metrics. `portreeve metrics` prints them in Prometheus' text format.
//!
//! A counter starts at 0 when the broker starts and never decreases. The other values are gauges.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::message::{MAX_OPERATION_NAME, MAX_OPERATIONS};
use crate::status::Quota;

/// Request: return the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsRequest {}

/// The reply to [`MetricsRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// The version of the broker's release.
    pub release: Text<32>,
    /// Milliseconds since the broker started to serve.
    pub uptime_ms: u64,
    /// The upper bounds of the latency buckets in microseconds, ascending.
    pub bounds_us: List<u64, 16>,
    /// The counters of every operation of this broker.
    pub operations: List<OperationCounts, MAX_OPERATIONS>,
    /// The quotas of one peer.
    pub quotas: List<Quota, 16>,
    /// The usage of each peer; peers beyond the maximum length of the list are omitted.
    pub peers: List<PeerCounts, 64>,
    /// Sessions.
    pub sessions: SessionCounts,
    /// Listeners.
    pub listeners: ListenerCounts,
    /// Addresses; `None` if the configuration names none.
    pub addresses: Option<AddressCounts>,
    /// The worker; `None` if the configuration has none.
    pub worker: Option<WorkerCounts>,
    /// The broker's log.
    pub log: LogCounts,
    /// Event subscriptions.
    pub events: EventCounts,
}

/// Counters of one operation. Each listener or address of a request with several items counts separately, but the
/// request has one latency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationCounts {
    /// The name of the operation.
    pub name: Text<MAX_OPERATION_NAME>,
    /// Successful items.
    pub granted: u64,
    /// Items that policy denied.
    pub denied: u64,
    /// Items that a quota refused.
    pub quota: u64,
    /// Items that policy allowed and that failed.
    pub failed: u64,
    /// Number of requests per latency bucket. Bucket i counts latencies above bound i-1 and up to bound i of
    /// [`Metrics::bounds_us`]; one last bucket counts latencies above the last bound. The buckets are not cumulative.
    pub latencies: List<u64, 17>,
    /// Sum of all latencies in microseconds.
    pub sum_us: u64,
}

/// The usage of one peer: the worker, or one user of the control socket with all of that user's sessions. The broker
/// can evict an idle user without sessions; the counters of that user then restart at 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCounts {
    /// The identity of the peer, as in [`Session::peer`](crate::status::Session::peer); all users that no `peer` scope names
    /// are one peer.
    pub peer: Text<64>,
    /// Open sessions.
    pub sessions: u32,
    /// Listeners that its sessions own.
    pub listeners: u64,
    /// Refused items since the broker started.
    pub refused: u64,
}

/// Session metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// Open sessions.
    pub open: u64,
    /// Sessions opened since the broker started.
    pub opened: u64,
    /// Connections that were closed because the peer had its share of the sessions, or none was free.
    pub rejected: u64,
    /// Sessions that ended because the peer violated the protocol.
    pub malformed: u64,
    /// How often the broker delayed a peer after too many requests, refusals or new sessions in a second, or because of
    /// descriptors in flight that the peer's session did not leave unread.
    pub delayed: u64,
}

/// Listener metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerCounts {
    /// Listeners that the broker holds.
    pub held: u64,
    /// Held listeners whose owner exited, retained for its successor.
    pub retained: u64,
    /// The maximum number of listeners that this broker can hold.
    pub limit: u64,
    /// Optional listeners of the configuration that could not be opened, and listeners whose interface is gone.
    pub missing: u64,
}

/// Address metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressCounts {
    /// Addresses that are on their interfaces.
    pub held: u64,
    /// Addresses that are being added.
    pub adding: u64,
    /// Addresses that are missing from their interface and not yet restored.
    pub missing: u64,
    /// Milliseconds until the next lease expires; `None` if no lease will expire.
    pub next_expiry_ms: Option<u64>,
    /// Renewed leases.
    pub renewals: u64,
    /// Leases that expired without renewal.
    pub expired: u64,
    /// Address conflicts: another host used an address that was requested or held here.
    pub conflicts: u64,
    /// Addresses that the broker restored after they were missing.
    pub restored: u64,
    /// How often the broker built the fence again after another program had removed parts of it.
    pub fence_repairs: u64,
}

/// Worker metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCounts {
    /// The worker is running.
    pub running: bool,
    /// Restarts of the worker.
    pub restarts: u64,
}

/// Log metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCounts {
    /// Lines about requests that changed nothing and about ended sessions that were not written because of the rate limit
    /// `max_log_lines`.
    pub suppressed: u64,
    /// Lines that were lost because the log's reader was too slow.
    pub lost: u64,
}

/// Event metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCounts {
    /// Sessions that are subscribed to events.
    pub subscribers: u64,
    /// Events that were not delivered because a subscriber read too slowly.
    pub lost: u64,
}
