//! Validation of a new configuration, by the broker itself in its confinement, with the code that validates it at start.

use std::collections::HashMap;

use super::restart_only::RestartOnly;
use crate::capability;
use crate::config::{self, Bundle, Config, PeerName, Report, Snapshot};
use crate::failure::Exit;
use crate::plan::{self, Findings};
use crate::policy::Policy;

/// A configuration that can come into force.
pub(super) struct Validated {
    pub config: Config,
    pub policy: Policy,
    pub snapshot: Snapshot,
    /// Warnings.
    pub report: Report,
    /// How many files it has.
    pub files: usize,
}

/// The additional remedy for an account of a name service, which only a restart can look up.
const NAME_SERVICE: &str = "; a reload looks names up only in /etc/passwd and /etc/group: give the number of any other \
    account, or restart portreeved";

/// Validates what the reader process has read.
pub(super) fn validate(fixed: &RestartOnly, bundle: Bundle) -> Result<Validated, Report> {
    let (config, warnings) = config::replay(&fixed.started.path, &bundle)?;
    let ids: HashMap<PeerName, Option<u32>> = bundle.accounts().collect();
    drop(bundle);
    let mut findings = Findings::of(warnings.into());
    let mut resolve = |name: &PeerName| ids.get(name).copied().flatten();
    let policy = match Policy::new(&config, &mut resolve) {
        Ok(policy) => Some(policy),
        Err(report) => {
            for unknown in report.diagnostics() {
                let mut unknown = unknown.clone();
                unknown.help += NAME_SERVICE;
                findings.error("broker.peer", Exit::NoUser, unknown);
            }
            None
        }
    };
    plan::check_capabilities(
        &config,
        &fixed.started.retained,
        fixed.started.unprivileged_port_start,
        &mut findings,
    );
    capability_text(&config, &mut findings);
    let files = config.sources().names().count();
    let report = findings.into_report();
    match policy {
        Some(policy) if !report.refuses() => {
            Ok(Validated { snapshot: Snapshot::of(&config), policy, report, files, config })
        }
        _ => Err(report),
    }
}

/// Checks the text of the capabilities: it cannot change now, but the next start must not fail because of it.
fn capability_text(config: &Config, findings: &mut Findings) {
    if let Some(text) = &config.security.capabilities
        && let Err(error) = capability::parse(&text.value)
    {
        let span = config.within(text, error.span.clone());
        let diagnostic = config.error(span, error.problem.to_string(), error.remedy());
        findings.error("security.capabilities", Exit::Config, diagnostic);
    }
}
