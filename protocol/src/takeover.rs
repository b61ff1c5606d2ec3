//! Messages of a takeover: a new broker (the successor) replaces the running one (the predecessor) without closing a
//! socket.
//!
//! The successor sends [`Takeover`] requests: [`Begin`], then [`NextBatch`] until the predecessor has exported all
//! listeners, leases and epochs, then [`Commit`]. The two brokers can be of different releases, so these messages have
//! a version of their own, [`TAKEOVER_VERSION`]: the successor offers a range, and the predecessor chooses. Every
//! change of a message in this module needs a new version.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::endpoint::{Endpoint, MAX_INTERFACE};
use crate::frame::MAX_DESCRIPTORS;
use crate::message::{ListenOptions, ListenerId};

/// The version of the messages in this module.
pub const TAKEOVER_VERSION: u16 = 3;
/// The maximum number of leases in one batch.
pub const MAX_LEASE_BATCH: usize = 256;
/// The maximum number of epochs in one batch.
pub const MAX_EPOCH_BATCH: usize = 1024;

/// The requests of the successor, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Takeover {
    /// Starts the takeover. The predecessor continues to serve its peers.
    Begin(Begin),
    /// Requests the next batch. From the first one on, the predecessor suspends all other sessions.
    NextBatch(NextBatch),
    /// Completes the takeover: the successor has imported everything and serves from now on.
    Commit(Commit),
}

/// Starts a takeover. The predecessor rolls it back unless the successor commits within 10 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The lowest takeover version that the successor supports.
    pub oldest: u16,
    /// The highest takeover version that the successor supports.
    pub newest: u16,
}

/// Requests the next batch of exported state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextBatch {}

/// Completes the takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {}

/// The replies of the predecessor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TakeoverReply {
    /// The reply to [`Begin`]. Attached: the control socket, then the socket of the service manager if
    /// [`Accepted::manager`] is set, then the map of the allowlist if [`Accepted::allowlist`] is set, then the socket of the
    /// reservation if [`Accepted::reservation`] is set.
    Accepted(Accepted),
    /// A batch of listeners. Their sockets are attached in the same order.
    Listeners(ListenerBatch),
    /// A batch of addresses with their leases.
    Leases(LeaseBatch),
    /// A batch of epochs of removed addresses.
    Epochs(EpochBatch),
    /// All state has been exported.
    ExportComplete(ExportComplete),
    /// The reply to [`Commit`]. The predecessor no longer serves; it stops its worker and exits.
    Committed(Committed),
}

/// The predecessor accepts the takeover and describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The takeover version of all further messages.
    pub version: u16,
    /// The version of the predecessor's release.
    pub release: Text<32>,
    /// CLOCK_BOOTTIME of the predecessor in nanoseconds. The successor compares it with its own: both brokers must be
    /// in the same time namespace (time_namespaces(7)), because leases expire by this clock.
    pub boottime_ns: u64,
    /// The file of the control socket.
    pub control: SocketFile,
    /// A connected notification socket of the service manager is attached. See sd_notify(3).
    pub manager: bool,
    /// The map of the allowlist is attached: the sockets that may receive packets. The successor uses and changes the same
    /// map, so that it can revoke the listeners that it imports. See bpf(2).
    pub allowlist: bool,
    /// The watchdog interval of the service manager in microseconds, 0 if disabled. See sd_watchdog_enabled(3).
    pub watchdog_us: u64,
    /// The capacity of the service manager's fdstore (`FileDescriptorStoreMax=`), 0 without an fdstore. See
    /// sd_pid_notify_with_fds(3).
    pub fdstore_max: u32,
    /// The predecessor manages addresses.
    pub addresses: bool,
    /// The fence is active: packet filter rules drop the traffic of an address as soon as its lease expires. The
    /// successor keeps using the same rules.
    pub fenced: bool,
    /// The socket of the reservation is attached: the broker that has it manages the addresses of this network namespace.
    pub reservation: bool,
}

/// The identity of a Unix socket's file. See stat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    /// The device number, st_dev.
    pub device: u64,
    /// The inode number, st_ino.
    pub inode: u64,
}

/// A batch of listeners, by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerBatch {
    /// The listeners.
    pub listeners: List<ExportedListener, MAX_DESCRIPTORS>,
}

/// One exported listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedListener {
    /// The listener's number, which stays the same.
    pub id: ListenerId,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The options of the request that opened it.
    pub options: ListenOptions,
    /// The uid of the owning session's user; `None` if the worker owns it.
    pub user: Option<u32>,
    /// The file of a Unix socket; `None` for TCP and UDP.
    pub file: Option<SocketFile>,
}

/// A batch of leases, by address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseBatch {
    /// The leases.
    pub leases: List<ExportedLease, MAX_LEASE_BATCH>,
}

/// One exported address and its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedLease {
    /// The address.
    pub address: IpAddr,
    /// The index of the interface that has the address.
    pub index: u32,
    /// The name that the interface had when the address was added.
    pub interface: Text<MAX_INTERFACE>,
    /// The prefix length.
    pub prefix: u8,
    /// The uid of the owning user; `None` if the worker owns it.
    pub user: Option<u32>,
    /// The lease duration in seconds; `None` if the address is permanent.
    pub lease_seconds: Option<u32>,
    /// The time of expiry in nanoseconds of CLOCK_BOOTTIME; `None` if the address is permanent.
    pub deadline_ns: Option<u64>,
    /// The epoch of the lease; see [`AddAddress`](crate::address::AddAddress).
    pub epoch: u64,
    /// The address that it follows (`duravip_follow`).
    pub follows: Option<IpAddr>,
    /// The interface has the address; false if another program removed it.
    pub present: bool,
    /// The address is announced to the neighbours.
    pub announced: bool,
    /// The owner renews it with all others ([`RenewAll`](crate::address::RenewAll)).
    pub renewed_with_all: bool,
}

/// A batch of epochs of removed addresses, those first that a broker without room for all forgets first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochBatch {
    /// The epochs.
    pub epochs: List<ExportedEpoch, MAX_EPOCH_BATCH>,
}

/// The highest epoch that the predecessor has seen from a holder for an address that it removed. It keeps refusing requests
/// of that holder with a lower one, and if the holder is root, those of every holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedEpoch {
    /// The address.
    pub address: IpAddr,
    /// The uid of the holder's user; `None` if the worker had the address.
    pub user: Option<u32>,
    /// The highest epoch.
    pub epoch: u64,
    /// The lease expired; false if the owner removed the address.
    pub expired: bool,
}

/// All state has been exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportComplete {}

/// The takeover is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The maximum time in milliseconds until the predecessor and its worker have exited. The predecessor closes this
    /// channel last.
    pub exit_ms: u64,
}
