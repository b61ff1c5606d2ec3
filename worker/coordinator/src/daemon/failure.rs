//! The reasons that the program ends, with their exit codes: those of sysexits.h.

use std::io;

/// Why the program ends.
#[derive(Debug)]
pub enum Failure {
    /// Something that the program needs fails: the action, and the cause.
    System(String, io::Error),
    /// The configuration must be changed.
    Config(String),
    /// The user or its rights are wrong.
    NoPermission(String),
}

impl Failure {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Failure::System(..) => 71,
            Failure::NoPermission(_) => 77,
            Failure::Config(_) => 78,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::System(action, cause) => write!(out, "{action}: {cause}"),
            Failure::Config(text) | Failure::NoPermission(text) => out.write_str(text),
        }
    }
}
