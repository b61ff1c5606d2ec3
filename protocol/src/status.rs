//! The broker's state as data; the CLI renders it.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::message::ListenerId;

/// The reply to a status request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The broker's release.
    pub release: Text<32>,
    /// Milliseconds since the broker began to serve.
    pub uptime_ms: u64,
    /// Broker, launcher and worker.
    pub processes: List<Process, 8>,
    /// Things that the operator should know: a lock that this kernel lacks, a worker that keeps dying.
    pub warnings: List<Text<256>, 16>,
    /// What one peer may use at most, by the name of the option that says so.
    pub quotas: List<Quota, 16>,
    /// How many listeners are held in all.
    pub listeners_held: u64,
    /// The open sessions, at most as many as fit.
    pub sessions: List<Session, 64>,
    /// A page of the listeners, in the order of their numbers.
    pub listeners: List<Listener, 128>,
    /// Where the next page begins, as `after`; 0 when this is the last.
    pub next: u64,
}

/// One quota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// The option's name, such as `max_sessions`.
    pub name: Text<32>,
    /// What it is set to.
    pub limit: u64,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// `broker`, `launcher` or `worker`.
    pub role: Text<16>,
    /// Its process id in the broker's pid namespace.
    pub pid: u32,
    /// How often it was started again.
    pub restarts: u32,
    /// Its root directory as the host names it.
    pub root: Text<256>,
    /// What it holds, as the kernel said after confinement.
    pub credentials: Credentials,
    /// The locks that /proc/pid/status does not tell: Landlock, seccomp's size, the securebits, a line each.
    pub locks: List<Text<128>, 8>,
}

/// What a process holds, field by field as in /proc/pid/status. See proc_pid_status(5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved and filesystem user id.
    pub uid: [u32; 4],
    /// Real, effective, saved and filesystem group id.
    pub gid: [u32; 4],
    /// The supplementary groups, as many as fit.
    pub groups: List<u32, 64>,
    /// CapInh, a bit each.
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

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its number.
    pub id: u64,
    /// Who the broker takes the peer for: `worker`, or the user of a control-socket peer.
    pub peer: Text<64>,
    /// How the peer calls itself.
    pub client: Text<64>,
    /// The peer's process id, 0 where the kernel did not say.
    pub pid: u32,
    /// How many listeners it owns.
    pub listeners: u32,
    /// How many requests of this peer were refused since it came.
    pub refused: u64,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its number.
    pub id: ListenerId,
    /// Where it listens, as the configuration writes it.
    pub endpoint: Text<128>,
    /// `static`, or who asked for it.
    pub owner: Text<64>,
    /// Whether its owner is gone and it is kept for a successor.
    pub retained: bool,
}
