//! What the configuration means on this host: names resolved, texts read, everything checked that can be checked
//! without changing anything. `check` and `explain` stop here; starting goes on.
//!
//! Every step notes all that it finds and goes on, so that one run tells everything; a start then fails for the
//! first error.

mod accounts;
mod addresses;
pub mod capabilities;
mod chroot;
mod finding;
mod sockets;
mod survey;
mod worker;

use nix::unistd::Gid;

use crate::capability::State;
use crate::config::{Config, Diagnostic, Severity};
use crate::confine::identity::Identity;
use crate::failure::{Exit, Failure};
use crate::policy::{Policy, unserved};

pub use accounts::policy;
pub use addresses::{address_settings, moving, names_addresses};
pub use chroot::Root;
pub use finding::Findings;
pub use sockets::{check_directories, socket_directories};
pub use survey::survey;
pub use worker::command;

/// What could be understood of the configuration.
#[derive(Debug)]
pub struct Draft {
    /// Who the worker is.
    pub identity: Option<Identity>,
    retained: Option<State>,
    policy: Option<Policy>,
    socket_group: Option<Gid>,
}

/// The configuration, understood.
#[derive(Debug)]
pub struct Plan {
    /// Who the worker is.
    pub identity: Identity,
    /// What the broker retains.
    pub retained: State,
    /// What may be asked.
    pub policy: Policy,
    /// The group of the control socket's file.
    pub socket_group: Gid,
}

impl Draft {
    /// Understands as much as there is to understand.
    pub fn new(config: &Config, findings: &mut Findings) -> Self {
        let identity = accounts::identity(config, findings);
        let socket_group = accounts::socket_group(config, findings);
        let retained = capabilities::retained(config, findings);
        capabilities::privileges(config, retained.as_ref(), findings);
        let policy = policy(config, findings);
        if let Some(retained) = retained.filter(|_| findings.trusts_defaults()) {
            not_served(config, &retained, unprivileged_port_start(), findings);
        }
        Self { identity, retained, policy, socket_group }
    }

    fn complete(self) -> Option<Plan> {
        Some(Plan {
            identity: self.identity?,
            retained: self.retained?,
            policy: self.policy?,
            socket_group: self.socket_group?,
        })
    }
}

impl Plan {
    /// Works it out, or fails for the first error.
    pub fn new(config: &Config, findings: &mut Findings) -> Result<Self, Failure> {
        let draft = Draft::new(config, findings);
        match draft.complete() {
            Some(plan) if findings.first_failure().is_none() => Ok(plan),
            _ => Err(findings.failure()),
        }
    }
}

/// Finds what is permitted and the retained capabilities cannot serve.
pub fn not_served(config: &Config, retained: &State, port_start: u16, findings: &mut Findings) {
    for found in unserved(config, retained.effective.bits(), port_start) {
        match found.severity {
            Severity::Error => findings.error("policy", Exit::Config, found),
            Severity::Warning | Severity::Note => findings.tell(found),
        }
    }
}

/// The first port that needs no capability: net.ipv4.ip_unprivileged_port_start, see ip(7).
pub fn unprivileged_port_start() -> u16 {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // Older kernels have no such setting and this port.
    text.trim().parse().unwrap_or(1024)
}

/// An error about what the configuration leaves out.
fn unsaid(config: &Config, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
    match config.security.span {
        Some(span) => config.error(span, message, help),
        None => {
            let main = config.sources().names().next().unwrap_or_default();
            Diagnostic::about_file(main, message, help)
        }
    }
}
