//! The settings of the `worker` scope for its supervision.

use crate::config::Worker;
use crate::launcher::{Orphans, ProgramName};
use crate::server::Supervision;

/// Collects the settings.
pub fn supervision(worker: &Worker, program: ProgramName) -> Supervision {
    Supervision {
        program,
        bind: worker.bind,
        stdin: worker.stdin.as_ref().map(|endpoint| endpoint.value.clone()),
        restart: worker.restart,
        stable_after: worker.stable_after,
        stop_signal: worker.stop_signal,
        stop_timeout: worker.stop_timeout,
        end_descendants: worker.end_descendants,
    }
}

/// What the launcher does when the broker ends.
pub fn orphans(worker: &Worker) -> Orphans {
    Orphans {
        orphan_timeout: worker.orphan_timeout,
        stop_signal: worker.stop_signal,
        stop_timeout: worker.stop_timeout,
    }
}
