//! A broker that fails to start: it exits with a code and a message of one line, and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::broker::{self, SOCKET};
use crate::wait::{TIMEOUT, eventually};
use crate::{Host, process, resources};

/// Exit codes of sysexits(3).
pub mod exit {
    /// A file cannot be read.
    pub const NO_INPUT: i32 = 66;
    /// A user or group does not exist.
    pub const NO_USER: i32 = 67;
    /// A resource is unavailable.
    pub const UNAVAILABLE: i32 = 69;
    /// A system call failed.
    pub const OS_ERROR: i32 = 71;
    /// A system file is not as required.
    pub const OS_FILE: i32 = 72;
    /// A file cannot be created.
    pub const CANNOT_CREATE: i32 = 73;
    /// The caller lacks permission.
    pub const NO_PERMISSION: i32 = 77;
    /// The configuration is wrong.
    pub const CONFIG: i32 = 78;
}

/// The exit of a broker that failed to start.
#[derive(Debug)]
pub struct StartupFailure {
    /// Its exit code.
    pub code: Option<i32>,
    /// Its standard error.
    pub message: String,
}

impl StartupFailure {
    /// Starts a broker with this configuration, which must fail to start.
    #[track_caller]
    pub fn of(host: &Host, text: &str) -> Self {
        Self::of_command(broker::command(host, &broker::config(host, text)))
    }

    /// Starts a broker by a prepared command, which must fail to start.
    #[track_caller]
    pub fn of_command(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let pidfd = pidfd_open(broker::pid_of(&child), PidfdFlags::empty()).unwrap();
        let mut end = [PollFd::new(&pidfd, PollFlags::IN)];
        let ended = poll(&mut end, Some(&broker::timespec(TIMEOUT))).unwrap();
        if ended == 0 {
            let _ = child.kill();
        }
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(ended > 0, "the broker is running, but should have failed to start:\n{message}");
        Self { code: output.status.code(), message }
    }

    /// Asserts that it exited with this code and one line that contains all these words, and left nothing behind.
    #[track_caller]
    pub fn assert_reports(&self, code: i32, words: &[&str]) {
        let message = &self.message;
        assert_eq!(self.code, Some(code), "{message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        for word in words {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
        // The broker's child processes notice its exit and exit a moment later.
        eventually("all processes of the broker to exit", || {
            process::other_processes().is_empty().then_some(())
        });
        assert!(resources::tcp_listeners().is_empty());
        assert!(!Path::new(SOCKET).exists(), "the control socket was left behind");
    }
}
