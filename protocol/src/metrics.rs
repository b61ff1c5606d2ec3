//! What the broker has counted and measured, as data; the CLI renders it.
//!
//! All of it are integers. What counts begins at 0 when the broker starts and only grows.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::status::Quota;

/// Asks for what the broker has counted and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsRequest {}

/// The reply to [`MetricsRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// The broker's release.
    pub release: Text<32>,
    /// Milliseconds since the broker began to serve.
    pub uptime_ms: u64,
    /// The upper bounds of the latency buckets in microseconds, ascending.
    pub bounds_us: List<u64, 16>,
    /// Every operation that this broker knows.
    pub operations: List<OperationCounts, 32>,
    /// What one peer may use at most, by the name of the option that says so.
    pub quotas: List<Quota, 16>,
    /// What each peer has used, at most as many as fit.
    pub peers: List<PeerCounts, 64>,
    /// The sessions.
    pub sessions: SessionCounts,
    /// The listeners.
    pub listeners: ListenerCounts,
    /// The addresses, where the broker may have any.
    pub addresses: Option<AddressCounts>,
    /// The worker, where there is one.
    pub worker: Option<WorkerCounts>,
    /// The log.
    pub log: LogCounts,
    /// The events.
    pub events: EventCounts,
}

/// The requests of one operation. Of a batch each listener or address counts as granted or not; the batch has one
/// latency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationCounts {
    /// The operation.
    pub name: Text<16>,
    /// What was done.
    pub granted: u64,
    /// What policy refused.
    pub denied: u64,
    /// What a quota refused.
    pub quota: u64,
    /// What was permitted and failed.
    pub failed: u64,
    /// How many requests took at most as long as the bound of the same place, and longer than the one before; what
    /// took longer than the last bound comes after them.
    pub latencies: List<u64, 17>,
    /// Microseconds that all of them took together.
    pub sum_us: u64,
}

/// One peer: the worker, or a user of the control socket with all of its sessions. One that owes nothing and has no
/// session may be forgotten, and counts from 0 when it comes again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCounts {
    /// Who it is.
    pub peer: Text<64>,
    /// Its open sessions.
    pub sessions: u32,
    /// The listeners that its sessions hold.
    pub listeners: u64,
    /// What it was refused.
    pub refused: u64,
}

/// The sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// How many are open.
    pub open: u64,
    /// How many began.
    pub opened: u64,
    /// Peers that got none, because they had as many as they may.
    pub rejected: u64,
    /// Those that ended because of a packet that was no request.
    pub malformed: u64,
    /// How often a peer had to wait, after many refusals or new sessions within a second.
    pub delayed: u64,
}

/// The listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerCounts {
    /// How many are held.
    pub held: u64,
    /// How many of them are kept for a successor of their owner.
    pub retained: u64,
    /// How many this broker can hold.
    pub limit: u64,
}

/// The addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressCounts {
    /// How many are on their interfaces.
    pub held: u64,
    /// How many are being added.
    pub adding: u64,
    /// How many somebody took away and are not yet put back.
    pub missing: u64,
    /// Milliseconds until the next lease ends; absent where none will.
    pub next_expiry_ms: Option<u64>,
    /// Leases that were renewed.
    pub renewals: u64,
    /// Leases that ended because nobody renewed them.
    pub expired: u64,
    /// Other hosts that were found to have an address: one that was asked for, or one that is held.
    pub conflicts: u64,
    /// Addresses that somebody took away and that were put back.
    pub restored: u64,
}

/// The worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCounts {
    /// Whether it runs.
    pub running: bool,
    /// How often it was started again.
    pub restarts: u64,
}

/// The log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCounts {
    /// Lines about refusals and ends of sessions that were counted and not written, because there were too many.
    pub suppressed: u64,
    /// Lines that were lost because nobody read them.
    pub lost: u64,
}

/// The events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCounts {
    /// How many sessions are told of them.
    pub subscribers: u64,
    /// Events that a session was not told of, because it took those before too slowly.
    pub lost: u64,
}
