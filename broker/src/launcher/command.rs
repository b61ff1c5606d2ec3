//! The command that the launcher starts.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::config::Bind;
use crate::failure::{Exit, Failure};

/// The worker's command.
#[derive(Debug)]
pub struct Command {
    /// The executable, opened before the chroot.
    pub program: OwnedFd,
    /// Its path on the host and its place in the configuration, for messages.
    pub name: ProgramName,
    /// worker.command: the arguments, the program's path first.
    pub arguments: Vec<CString>,
    /// worker.environment: NAME=VALUE each.
    pub environment: Vec<CString>,
    /// worker.umask
    pub umask: u32,
    /// worker.bind
    pub bind: Bind,
}

/// A program's path and place, for messages.
#[derive(Clone, Debug)]
pub struct ProgramName {
    /// Its path on the host.
    pub path: String,
    /// The place in the configuration.
    pub place: String,
}

impl ProgramName {
    /// The failure if the worker's user cannot execute the program.
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
            "let the worker's user execute it, and mount its file system without noexec",
        )
    }
}
