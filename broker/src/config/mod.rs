//! The configuration: parses files in the language of `ecelerity.conf` into typed scopes, or reports every error.
//!
//! [`load`] reads the named file and the files that it includes, and nothing else; it resolves no names, opens no
//! sockets and changes nothing. In the [`Config`] that it returns, every value is in range and every reference to
//! another scope is valid. Every value that a later check can refuse keeps its place, so that the check can name it.
#![forbid(unsafe_code)]

mod binding;
mod broker;
mod bundle;
mod characters;
mod check;
mod check_duravip;
mod cidr;
mod cluster;
mod coordinator;
mod diagnostic;
mod duravip;
mod engine;
mod files;
mod health_check;
mod include;
mod lexer;
mod limit;
mod listener;
mod momentum2;
pub(crate) mod nearest;
#[cfg(test)]
pub(crate) mod option_coverage;
mod pace;
mod parser;
mod pattern;
mod peer;
mod permit;
mod quotas;
mod reader;
mod report;
mod scalar;
mod section;
mod security;
mod snapshot;
mod source;
#[cfg(test)]
mod tests;
mod top_level;
mod tree;
mod trusted_path;
mod typed;
mod worker;

pub use binding::Binding;
pub use broker::{Broker, LogLevel, OnNarrow};
pub use bundle::Bundle;
pub use cidr::{Cidr, CidrError, not_manageable};
pub use cluster::{Cluster, Topology};
pub use coordinator::Coordinator;
pub use diagnostic::{Diagnostic, MAX_DIAGNOSTICS, Severity};
pub use duravip::DuraVip;
pub use engine::{Engine, EngineUrl};
pub use files::{MAX_BYTES, Trust};
pub use health_check::HealthCheck;
pub use include::{MAX_FILES, MAX_INCLUDE_DEPTH};
pub use limit::{Limit, Resource, Resources};
pub use listener::{Listener, SocketOptions};
pub use pace::{Pace, without_pauses};
pub use parser::MAX_DEPTH;
pub use pattern::{Hosts, ListenPattern, Malformed, well_formed};
pub use peer::{GROUPS, Peer, PeerName};
pub use permit::Permit;
pub use quotas::Quotas;
pub use report::{Report, Style};
pub use security::{DEFAULT_ACCOUNT, IdRange, Security};
pub use snapshot::Snapshot;
pub use source::{FileId, Place, Sources, Span, Spanned};
pub use typed::{Config, check_syntax, check_syntax_text, examine, load, parse_text, record, replay};
pub use worker::{Bind, Worker};

/// Whether the broker reads this scope at top level; the others are the MTA's.
fn is_read(name: &str) -> bool {
    const READ: [&str; 6] = ["security", "broker", "worker", "binding", "binding_group", "cluster"];
    READ.iter().any(|read| read.eq_ignore_ascii_case(name)) || is_listener(name)
}

/// Whether a configuration may have this scope only once, whatever its instance name. The name is in lower case.
fn is_single(name: &str) -> bool {
    ["security", "broker", "worker", "cluster", "engine"].contains(&name)
}

/// Whether the broker reads this scope inside one of its own.
fn is_read_within(name: &str) -> bool {
    const READ: [&str; 7] = ["listen", "binding", "topology", "engine", "check", "permit", "peer"];
    READ.iter().any(|read| read.eq_ignore_ascii_case(name))
}

/// Whether a scope is a listener of the MTA: `ESMTP_Listener`, `control_listener`, …
fn is_listener(name: &str) -> bool {
    const SUFFIX: &str = "_listener";
    let suffix = name.len().checked_sub(SUFFIX.len()).and_then(|at| name.get(at..));
    suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case(SUFFIX))
}
