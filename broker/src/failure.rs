//! Fatal errors: one line with the step, what failed on which value, and the remedy; and the exit code.

use std::fmt;
use std::process::ExitCode;

use portreeve_protocol::printable::Escaped;

use crate::config::Report;

/// Exit codes of sysexits.h, see sysexits(3head).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// EX_USAGE: the command line is wrong.
    Usage = 64,
    /// EX_NOINPUT: a file cannot be read.
    NoInput = 66,
    /// EX_NOUSER: unknown user or group.
    NoUser = 67,
    /// EX_UNAVAILABLE: a resource is in use or unavailable.
    Unavailable = 69,
    /// EX_OSERR: a system call failed.
    OsError = 71,
    /// EX_OSFILE: a system file is wrong.
    OsFile = 72,
    /// EX_CANTCREAT: a file cannot be created.
    CannotCreate = 73,
    /// EX_NOPERM: permission denied.
    NoPermission = 77,
    /// EX_CONFIG: the configuration is wrong.
    Config = 78,
}

/// Why the broker does not start, or ends: one line per error.
#[derive(Debug)]
pub struct Failure {
    lines: Vec<String>,
    exit: Exit,
}

impl Failure {
    /// `problem` names what failed, on which value, and why; `remedy` says what to do.
    pub fn new(
        exit: Exit,
        step: &'static str,
        problem: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Self { lines: vec![one_line(&format!("{step}: {problem}: {remedy}"))], exit }
    }

    /// All errors of a configuration.
    pub fn of_configuration(report: &Report) -> Self {
        let exit = if report.is_unread() { Exit::NoInput } else { Exit::Config };
        Self { lines: report.one_lines().map(|line| one_line(&line)).collect(), exit }
    }

    /// A failed system call.
    pub fn os(step: &'static str, call: &str, error: impl fmt::Display) -> Self {
        Self::new(
            Exit::OsError,
            step,
            format_args!("{call} failed: {error}"),
            "check whether a container or a security module forbids the call",
        )
    }

    /// The failure that a child process reported, with its remedy.
    pub fn of_child(step: &'static str, report: &str) -> Self {
        Self { lines: vec![one_line(&format!("{step}: {report}"))], exit: Exit::OsError }
    }

    /// One line per error.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The exit code.
    pub fn exit(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }
}

/// Escapes what is not printable, such as a newline in a value, so that an error stays on one line.
fn one_line(text: &str) -> String {
    Escaped(text).to_string()
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for Failure {}
