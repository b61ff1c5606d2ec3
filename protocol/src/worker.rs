//! Messages about the worker process: its state, a restart, and signals.

use serde::{Deserialize, Serialize};

use crate::bounded::Text;

/// Request: return the state of the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRequest {}

/// Request: stop the worker as at the broker's end, then start it again at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartWorker {}

/// The reply to [`WorkerRequest`], and to [`RestartWorker`] when the new worker runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// `starting`, `running`, `stopping`, or `waiting`: it has exited and is started again after a pause.
    pub state: Text<16>,
    /// Milliseconds since that state began.
    pub state_ms: u64,
    /// The worker's process id in the broker's pid namespace; 0 while none runs.
    pub pid: u32,
    /// How often it was started again since the broker began to serve.
    pub restarts: u32,
    /// Milliseconds until the next start; 0 unless the state is `waiting`.
    pub next_start_ms: u64,
    /// How the worker before this one ended; empty if there was none.
    pub last_ending: Text<64>,
    /// The number of processes that earlier workers left and that still run.
    pub left: u32,
}

/// Request: send a signal to the worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalWorker {
    /// The number of the signal, 1 to 64. See signal(7).
    pub signal: u8,
}

/// The reply to [`SignalWorker`]: the kernel has accepted the signal for the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSignaled {
    /// The worker's process id in the broker's pid namespace.
    pub pid: u32,
}
