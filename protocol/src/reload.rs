//! Messages about reloading the configuration.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::trailing::Trailing;

/// Request: reload the configuration, or return the result of the last reload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// True: do not reload; return the result of the last reload, by any peer.
    pub last: bool,
    /// True: also reload a configuration that closes every listener of a scope, or every static listener.
    pub force: Trailing<bool>,
}

/// The reply to [`Reload`]. A refused configuration is reported as the fault `invalid`; its full result is available
/// with [`Reload::last`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The number of reloads since the broker started to serve, including this one.
    pub number: u64,
    /// Milliseconds since the reload finished.
    pub age_ms: u64,
    /// Who requested the reload: a peer, or `SIGHUP`.
    pub requester: Text<64>,
    /// True: the new configuration is in force. False: the previous one stays in force.
    pub accepted: bool,
    /// The number of files read.
    pub files: u32,
    /// The changes; those beyond the maximum length of the list are omitted.
    pub changes: List<Change, 64>,
    /// The number of omitted changes.
    pub changes_omitted: u32,
    /// The errors, warnings and notes; those beyond the maximum length of the list are omitted.
    pub findings: List<Finding, 16>,
    /// The number of omitted findings.
    pub findings_omitted: u32,
}

/// One change of a reload, or one that needs a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The outcome: `applied`, `needs-restart`, `opened`, `closed`, `kept`, `released` or `failed`.
    pub outcome: Text<16>,
    /// The option, listener or address that changed.
    pub what: Text<128>,
    /// The old and the new value, or the cause of the outcome.
    pub detail: Text<256>,
}

/// One error, warning or note about the configuration. Lines and columns start at 1, and columns count characters. All
/// four are 0 if the finding is about a whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `error`, `warning` or `note`.
    pub severity: Text<8>,
    /// The path of the file.
    pub file: Text<128>,
    /// The first line.
    pub line: u32,
    /// The column in the first line.
    pub column: u32,
    /// The last line.
    pub end_line: u32,
    /// The column after the last character, in the last line.
    pub end_column: u32,
    /// The problem.
    pub message: Text<384>,
    /// How to correct it; may be empty.
    pub help: Text<384>,
    /// The whole finding as `portreeved check` prints it, with the underlined source line.
    pub rendered: Text<1024>,
}
