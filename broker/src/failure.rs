//! How the broker fails before it serves: one line that names the step, what went wrong with which value,
//! and the remedy; and the exit code that goes with it.

use std::fmt;
use std::process::ExitCode;

/// Exit codes, as sysexits(3) numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command line is wrong.
    Usage = 64,
    /// A file that is needed cannot be read.
    NoInput = 66,
    /// A user or group is not known here.
    NoUser = 67,
    /// Something that is needed is taken or gone.
    Unavailable = 69,
    /// The kernel refused something that should work.
    OsError = 71,
    /// A file of the system is not as it must be.
    OsFile = 72,
    /// A file cannot be made.
    CannotCreate = 73,
    /// The caller may not.
    NoPermission = 77,
    /// The configuration is wrong.
    Config = 78,
}

/// Why the broker does not start, or stops.
#[derive(Debug)]
pub struct Failure {
    step: &'static str,
    what: String,
    remedy: String,
    exit: Exit,
}

impl Failure {
    /// `what` says what failed on which value at which place, `remedy` what to do about it.
    pub fn new(exit: Exit, step: &'static str, what: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { step, what: what.to_string(), remedy: remedy.to_string(), exit }
    }

    /// A system call that should work and does not.
    pub fn os(step: &'static str, call: &str, error: impl fmt::Display) -> Self {
        Self::new(
            Exit::OsError,
            step,
            format_args!("{call} failed: {error}"),
            "nothing was started; see whether a container or a security module forbids the call",
        )
    }

    /// The exit code for it.
    pub fn exit(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A value from the configuration may hold a newline: one failure stays one line.
        let line = format!("{}: {}: {}", self.step, self.what, self.remedy);
        line.chars().try_for_each(|c| {
            use fmt::Write as _;
            if c.is_control() { write!(out, "{}", c.escape_default()) } else { out.write_char(c) }
        })
    }
}

impl std::error::Error for Failure {}
