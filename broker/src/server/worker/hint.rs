//! What the operator can look at after the worker has ended: its confinement may have prevented it from starting.

use std::time::Duration;

use crate::sys::wait::Ending;

/// A worker that ends sooner than this was probably prevented from starting.
const SHORT_RUN: Duration = Duration::from_secs(1);

/// The hint, if the confinement is a probable cause of this ending after a run of this length.
pub(super) fn hint(ending: Ending, run: Duration) -> Option<&'static str> {
    let short = run < SHORT_RUN;
    match ending {
        Ending::Signal(libc::SIGSYS) => {
            Some("a seccomp filter, such as SystemCallFilter= of the unit, denies a system call")
        }
        Ending::Signal(libc::SIGSEGV | libc::SIGTRAP | libc::SIGILL | libc::SIGBUS | libc::SIGABRT)
            if short =>
        {
            Some(
                "Node.js, LuaJIT, Java and others that generate code need MemoryDenyWriteExecute=no in the unit; see \
                 SystemCallFilter= and worker.limit too",
            )
        }
        Ending::Exit(127) if short => Some("a shared library may be missing in security.chroot"),
        Ending::Exit(code) if code != 0 && short => Some(
            "see its own messages; the unit may forbid what it needs (MemoryDenyWriteExecute=, SystemCallFilter=, \
             ReadWritePaths=), or a file is missing in security.chroot",
        ),
        Ending::Exit(_) | Ending::Signal(_) => None,
    }
}
