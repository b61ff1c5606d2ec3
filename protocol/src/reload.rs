//! Reading the configuration again: what came of it, as data.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};

/// Asks that the configuration be read again, or what came of the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Nothing is read: the reply tells of the last time, whoever asked for it.
    pub last: bool,
}

/// The reply to [`Reload`]. A configuration that is refused is a fault, and is told here when the last time is asked
/// for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// How often the configuration was read again since the broker began to serve, this time included.
    pub number: u64,
    /// Milliseconds since it was over.
    pub age_ms: u64,
    /// Who asked: a peer, or `SIGHUP`.
    pub requester: Text<64>,
    /// It is in force; otherwise the one before it is.
    pub accepted: bool,
    /// How many files were read.
    pub files: u32,
    /// What it changed, as much as fits in a frame.
    pub changes: List<Change, 64>,
    /// How many changes did not fit.
    pub changes_omitted: u32,
    /// What is wrong with the configuration, or surprising about it, as much as fits in a frame.
    pub findings: List<Finding, 16>,
    /// How many findings did not fit.
    pub findings_omitted: u32,
}

/// One thing that a reload changed, or did not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What came of it: `applied`, `needs-restart`, `opened`, `closed`, `kept`, `released` or `failed`.
    pub outcome: Text<16>,
    /// The option, listener or address.
    pub what: Text<128>,
    /// From what to what, or why.
    pub detail: Text<256>,
}

/// One finding about the configuration. Lines and columns count from 1, columns in characters; all four are 0 where it
/// is about a whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `error`, `warning` or `note`.
    pub severity: Text<8>,
    /// The file.
    pub file: Text<128>,
    /// The line in which it begins.
    pub line: u32,
    /// Its column.
    pub column: u32,
    /// The line in which it ends.
    pub end_line: u32,
    /// The column after its last character.
    pub end_column: u32,
    /// What is wrong.
    pub message: Text<384>,
    /// What would be right; empty where there is nothing to say.
    pub help: Text<384>,
    /// All of it as a person reads it, with the line underlined.
    pub rendered: Text<1024>,
}
