//! The supervision settings of the `worker` scope.

use crate::config::Worker;
use crate::launcher::ProgramName;
use crate::server::Supervision;

/// Collects the settings.
pub fn supervision(worker: &Worker, program: ProgramName) -> Supervision {
    Supervision {
        program,
        restart: worker.restart,
        stable_after: worker.stable_after,
        stop_timeout: worker.stop_timeout,
    }
}
