//! How the broker fails before it serves: one line that names the step, what went wrong with which value,
//! and the remedy; and the exit code that goes with it.

use std::fmt;
use std::process::ExitCode;

use crate::config::Report;
use crate::log;

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

/// Why the broker does not start, or stops: a line for each thing that is wrong.
#[derive(Debug)]
pub struct Failure {
    lines: Vec<String>,
    exit: Exit,
}

impl Failure {
    /// `what` says what failed on which value at which place, `remedy` what to do about it.
    pub fn new(exit: Exit, step: &'static str, what: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { lines: vec![one_line(&format!("{step}: {what}: {remedy}"))], exit }
    }

    /// Everything that is wrong with a configuration.
    pub fn of_configuration(report: &Report) -> Self {
        let exit = if report.is_unread() { Exit::NoInput } else { Exit::Config };
        Self { lines: report.one_lines().map(|line| one_line(&line)).collect(), exit }
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

    /// Tells it where the log goes, each line with the program's name.
    pub fn tell(&self) {
        log::tell(&self.lines);
    }

    /// The exit code for it.
    pub fn exit(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }
}

/// A value from the configuration may hold a newline: what is one line stays one.
fn one_line(text: &str) -> String {
    let escaped =
        text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() });
    escaped.collect()
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for Failure {}
