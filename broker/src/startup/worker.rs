//! How the configuration wants the worker supervised.

use crate::config::Worker;
use crate::launcher::ProgramName;
use crate::server::Supervision;

/// The settings of the worker scope that supervision needs.
pub fn supervision(worker: &Worker, program: ProgramName) -> Supervision {
    Supervision {
        program,
        restart: worker.restart,
        stable_after: worker.stable_after,
        stop_timeout: worker.stop_timeout,
    }
}
