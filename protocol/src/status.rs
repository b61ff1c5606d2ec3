//! The broker's state. `portreeve status` prints it.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::message::ListenerId;

/// The reply to [`StatusRequest`](crate::message::StatusRequest).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the broker's release.
    pub release: Text<32>,
    /// Milliseconds since the broker started to serve.
    pub uptime_ms: u64,
    /// The broker's processes: broker, launcher, worker and reader.
    pub processes: List<Process, 8>,
    /// Warnings for the operator, such as a confinement mechanism that this kernel lacks, or a worker that exits
    /// repeatedly.
    pub warnings: List<Text<256>, 16>,
    /// The quotas of one peer.
    pub quotas: List<Quota, 16>,
    /// The number of listeners that the broker holds.
    pub listeners_held: u64,
    /// The open sessions; those beyond the maximum length of the list are omitted.
    pub sessions: List<Session, 64>,
    /// One page of listeners, by number.
    pub listeners: List<Listener, 128>,
    /// The value of `after` for the next page; 0 if this page is the last.
    pub next: u64,
}

/// A quota: the maximum that one peer can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// The name of the configuration option, such as `max_sessions`.
    pub name: Text<32>,
    /// The value of the option.
    pub limit: u64,
}

/// One process of the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// `broker`, `launcher`, `worker` or `reader`.
    pub role: Text<16>,
    /// The process id in the broker's pid namespace.
    pub pid: u32,
    /// The number of restarts.
    pub restarts: u32,
    /// The root directory of the process, as a path on the host.
    pub root: Text<256>,
    /// The credentials, read from the kernel after the process confined itself.
    pub credentials: Credentials,
    /// The confinement that /proc/pid/status does not show, one line each: Landlock, the size of the seccomp filter,
    /// the securebits.
    pub locks: List<Text<128>, 8>,
}

/// The credentials of a process, as in /proc/pid/status. See proc_pid_status(5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved and filesystem user ids.
    pub uid: [u32; 4],
    /// Real, effective, saved and filesystem group ids.
    pub gid: [u32; 4],
    /// Supplementary group ids; those beyond the maximum length of the list are omitted.
    pub groups: List<u32, 64>,
    /// CapInh: bit n for capability n, here and below. See capabilities(7).
    pub inheritable: u64,
    /// CapPrm.
    pub permitted: u64,
    /// CapEff.
    pub effective: u64,
    /// CapBnd.
    pub bounding: u64,
    /// CapAmb.
    pub ambient: u64,
    /// NoNewPrivs.
    pub no_new_privs: bool,
    /// Seccomp: 0 none, 1 strict, 2 filter.
    pub seccomp: u8,
}

/// One open session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The session's number.
    pub id: u64,
    /// The peer's identity according to the broker: `worker`, or a user of the control socket.
    pub peer: Text<64>,
    /// The name that the peer gave in [`Hello`](crate::message::Hello).
    pub client: Text<64>,
    /// The peer's process id; 0 if unknown.
    pub pid: u32,
    /// The number of listeners that the session owns.
    pub listeners: u32,
    /// The number of refused requests of this peer.
    pub refused: u64,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The listener's number.
    pub id: ListenerId,
    /// The endpoint in the notation of the configuration.
    pub endpoint: Text<128>,
    /// The owner: `static` for a listener of the configuration, else the peer that requested it.
    pub owner: Text<64>,
    /// The owner has exited, and the broker retains the listener for its successor.
    pub retained: bool,
}
