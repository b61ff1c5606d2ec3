//! The plan: the configuration applied to this host. Names are resolved, capability texts are parsed, and everything
//! is checked that can be checked without changing anything. `check` and `explain` end here; a start continues.
//!
//! Every step adds all its findings and continues, so that one run shows everything; a start fails for the first error.

mod accounts;
mod addresses;
pub mod capabilities;
mod chroot;
mod finding;
mod limits;
mod sockets;
mod survey;
mod worker;

use nix::unistd::Gid;

use crate::capability::State;
use crate::config::{Config, Diagnostic, Severity};
use crate::confine::identity::Identity;
use crate::failure::{Exit, Failure};
use crate::policy::{Policy, capability_check};

pub use accounts::policy;
pub use addresses::{address_settings, floating, names_addresses};
pub use chroot::Root;
pub use finding::Findings;
pub use sockets::{check_directories, socket_directories};
pub use survey::survey;
pub use worker::command;

/// The parts of a plan that could be worked out.
#[derive(Debug)]
pub struct Draft {
    /// The worker's identity.
    pub identity: Option<Identity>,
    retained: Option<State>,
    policy: Option<Policy>,
    socket_group: Option<Gid>,
}

/// The complete plan.
#[derive(Debug)]
pub struct Plan {
    /// The worker's identity.
    pub identity: Identity,
    /// The capabilities that the broker retains.
    pub retained: State,
    /// What each peer is allowed.
    pub policy: Policy,
    /// The group of the control socket's file.
    pub socket_group: Gid,
}

impl Draft {
    /// Works out as much as possible.
    pub fn new(config: &Config, findings: &mut Findings) -> Self {
        let identity = accounts::identity(config, findings);
        let socket_group = accounts::socket_group(config, findings);
        let retained = capabilities::retained(config, findings);
        capabilities::privileges(config, retained.as_ref(), findings);
        let policy = policy(config, findings);
        limits::check(config, findings);
        if let Some(retained) = retained.filter(|_| findings.trusts_defaults()) {
            check_capabilities(config, &retained, unprivileged_port_start(), findings);
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
    /// Works out the plan, or fails with the first error.
    pub fn new(config: &Config, findings: &mut Findings) -> Result<Self, Failure> {
        let draft = Draft::new(config, findings);
        match draft.complete() {
            Some(plan) if findings.first_failure().is_none() => Ok(plan),
            _ => Err(findings.failure()),
        }
    }
}

/// Adds findings for rules that the retained capabilities cannot serve.
pub fn check_capabilities(config: &Config, retained: &State, port_start: u16, findings: &mut Findings) {
    for diagnostic in capability_check(config, retained.effective, port_start) {
        match diagnostic.severity {
            Severity::Error => findings.error("policy", Exit::Config, diagnostic),
            Severity::Warning | Severity::Note => findings.add(diagnostic),
        }
    }
}

/// The first port that can be bound without a capability: net.ipv4.ip_unprivileged_port_start, see ip(7).
pub fn unprivileged_port_start() -> u16 {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // Kernels before Linux 4.11 have no such setting; the port is fixed at 1024.
    text.trim().parse().unwrap_or(1024)
}

/// Whether IPv6 is disabled on every interface: net.ipv6.conf.all.disable_ipv6, see ip-sysctl of the kernel.
pub fn ipv6_disabled() -> bool {
    // A kernel without IPv6 has no such setting, and no IPv6 sockets.
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|text| text.trim() == "1")
}

/// An error about a missing scope or option.
fn missing(config: &Config, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
    match config.security.span {
        Some(span) => config.error(span, message, help),
        None => {
            let main = config.sources().names().next().unwrap_or_default();
            Diagnostic::about_file(main, message, help)
        }
    }
}
