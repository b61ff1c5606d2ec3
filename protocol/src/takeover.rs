//! Takeover on the wire: a broker that is being replaced hands its successor what it holds, part by part, and leaves
//! when the successor confirms.
//!
//! Both are brokers, perhaps of different releases, so these messages have a version of their own: the successor says
//! which it speaks, and the broker chooses. Anything that changes here is another version.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::endpoint::{Endpoint, MAX_INTERFACE};
use crate::frame::MAX_DESCRIPTORS;
use crate::message::{ListenOptions, ListenerId};

/// The version of these messages that this crate speaks.
pub const TAKEOVER_VERSION: u16 = 1;
/// How many leases one part has at most.
pub const MAX_LEASE_BATCH: usize = 256;
/// How many epochs one part has at most.
pub const MAX_EPOCH_BATCH: usize = 1024;

/// What a successor asks for, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Takeover {
    /// Whether the broker can be taken over. It serves its peers as before.
    Begin(Begin),
    /// The next part. From the first on the broker holds the requests of all others.
    NextBatch(NextBatch),
    /// The successor has everything and serves from now on.
    Commit(Commit),
}

/// Begins a takeover; the successor has to end it in a few seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The oldest version of these messages that the successor speaks.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
}

/// Asks for the next part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextBatch {}

/// Confirms that the successor serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {}

/// The broker's answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TakeoverReply {
    /// The answer to [`Begin`]. The control socket rides with it, then the service manager's, where there is one.
    Accepted(Accepted),
    /// Listeners; their sockets ride along in order.
    Listeners(ListenerBatch),
    /// Addresses with their leases.
    Leases(LeaseBatch),
    /// Epochs of addresses that are gone.
    Epochs(EpochBatch),
    /// There are no more parts.
    ExportComplete(ExportComplete),
    /// The broker serves no longer, and ends its worker and itself.
    Committed(Committed),
}

/// Who is to be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The version of these messages from here on.
    pub version: u16,
    /// The broker's release.
    pub release: Text<32>,
    /// Nanoseconds of CLOCK_BOOTTIME now: both must see the same clock. See clock_gettime(2).
    pub boottime_ns: u64,
    /// The control socket's file.
    pub control: SocketFile,
    /// The service manager's socket rides along, connected. See sd_notify(3).
    pub manager: bool,
    /// Microseconds between the signs of life that the service manager wants, 0 for none. See sd_watchdog_enabled(3).
    pub watchdog_us: u64,
    /// How many descriptors the service manager stores, 0 for none. See sd_pid_notify_with_fds(3).
    pub fdstore_max: u32,
    /// Whether the broker has addresses, or may have any.
    pub addresses: bool,
    /// Whether packet filter rules silence each address at the end of its lease: the successor goes on with them.
    pub fenced: bool,
}

/// The file of a Unix socket, as stat(2) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    /// st_dev
    pub device: u64,
    /// st_ino
    pub inode: u64,
}

/// Some of the listeners, in the order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerBatch {
    /// The listeners.
    pub listeners: List<ExportedListener, MAX_DESCRIPTORS>,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedListener {
    /// Its number, which it keeps.
    pub id: ListenerId,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// How it was asked for.
    pub options: ListenOptions,
    /// The user whose session owns it; absent for the worker's.
    pub user: Option<u32>,
    /// The file of a Unix socket.
    pub file: Option<SocketFile>,
}

/// Some of the leases, in the order of their addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseBatch {
    /// The leases.
    pub leases: List<ExportedLease, MAX_LEASE_BATCH>,
}

/// An address and its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedLease {
    /// The address.
    pub address: IpAddr,
    /// The number of the interface that it is on.
    pub index: u32,
    /// That interface's name when it was added.
    pub interface: Text<MAX_INTERFACE>,
    /// The prefix length.
    pub prefix: u8,
    /// The user whose it is; absent for the worker's.
    pub user: Option<u32>,
    /// How many seconds it was given; absent for ever.
    pub lease_seconds: Option<u32>,
    /// When it ends, in nanoseconds of CLOCK_BOOTTIME; absent for never.
    pub deadline_ns: Option<u64>,
    /// The number of this ownership.
    pub epoch: u64,
    /// The address that it follows wherever that goes.
    pub follows: Option<IpAddr>,
    /// Whether it is on its interface, and nobody took it away.
    pub present: bool,
    /// Whether the neighbours are told of it.
    pub announced: bool,
}

/// Some of the epochs of addresses that are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochBatch {
    /// The epochs.
    pub epochs: List<ExportedEpoch, MAX_EPOCH_BATCH>,
}

/// The newest epoch of an address that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedEpoch {
    /// The address.
    pub address: IpAddr,
    /// The epoch.
    pub epoch: u64,
    /// Whether its lease ran out, and nobody gave it back.
    pub expired: bool,
}

/// Everything was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportComplete {}

/// The successor serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// Milliseconds until the broker is gone, and its worker with it, at most. It closes this channel last.
    pub exit_ms: u64,
}
