//! A broker that does not start: its exit code and its one line, and nothing left of it.

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
    /// A user or group is not known.
    pub const NO_USER: i32 = 67;
    /// Something is taken.
    pub const UNAVAILABLE: i32 = 69;
    /// A file of the system is not as it must be.
    pub const OS_FILE: i32 = 72;
    /// A file cannot be made.
    pub const CANNOT_CREATE: i32 = 73;
    /// The caller may not.
    pub const NO_PERMISSION: i32 = 77;
    /// The configuration is wrong.
    pub const CONFIG: i32 = 78;
}

/// How a broker ended that did not serve.
#[derive(Debug)]
pub struct StartupFailure {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it said on standard error.
    pub message: String,
}

impl StartupFailure {
    /// Starts a broker with this configuration, which must refuse to start.
    #[track_caller]
    pub fn of(host: &Host, text: &str) -> Self {
        Self::of_command(broker::command(host, &broker::config(host, text)))
    }

    /// Likewise one that a test has prepared.
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
        assert!(ended > 0, "the broker went on running where it must refuse to start:\n{message}");
        Self { code: output.status.code(), message }
    }

    /// It ended with this code and one line that has all these words, and left nothing behind.
    #[track_caller]
    pub fn assert_reports(&self, code: i32, words: &[&str]) {
        let message = &self.message;
        assert_eq!(self.code, Some(code), "{message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        for word in words {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
        // What the broker had forked sees its end, and ends a moment later.
        eventually("the end of every process of the broker", || {
            process::other_processes().is_empty().then_some(())
        });
        assert!(resources::tcp_listeners().is_empty());
        assert!(!Path::new(SOCKET).exists(), "the control socket was left behind");
    }
}
