//! What the launcher starts.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::failure::{Exit, Failure};

/// What to start.
#[derive(Debug)]
pub struct Command {
    /// The executable, opened before the chroot.
    pub program: OwnedFd,
    /// Its path on the host, and where the configuration names it, for messages.
    pub name: ProgramName,
    /// worker.command: the arguments, the program's path first.
    pub arguments: Vec<CString>,
    /// worker.environment: NAME=VALUE each.
    pub environment: Vec<CString>,
}

/// A program as messages name it.
#[derive(Clone, Debug)]
pub struct ProgramName {
    /// Its path on the host.
    pub path: String,
    /// Where the configuration names it.
    pub place: String,
}

impl ProgramName {
    /// The failure of a program that the worker's user cannot execute.
    pub fn not_executable(&self, errno: i32) -> Failure {
        Failure::new(
            Exit::OsFile,
            "worker",
            format_args!(
                "{}: {:?} cannot be executed: {}",
                self.place,
                self.path,
                Errno::from_raw(errno).desc()
            ),
            "the worker's user must be allowed to execute it, on a file system that is not mounted noexec",
        )
    }
}
