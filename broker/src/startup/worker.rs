//! How the worker of the configuration is kept.

use crate::config::Worker;
use crate::launcher::ProgramName;
use crate::server::Supervision;

/// What the service is told of it.
pub fn supervision(worker: &Worker, program: ProgramName) -> Supervision {
    Supervision {
        program,
        restart: worker.restart,
        stable_after: worker.stable_after,
        stop_timeout: worker.stop_timeout,
    }
}
