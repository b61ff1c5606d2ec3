//! Whether a configuration that was read again may come into force: the broker's own judgement of it, in its own
//! confinement, by the code that judges it at the start.

use std::collections::HashMap;

use super::fixed::Fixed;
use crate::capability;
use crate::config::{self, Bundle, Config, Facts, PeerName, Report, facts};
use crate::failure::Exit;
use crate::plan::{self, Findings};
use crate::policy::Policy;

/// A configuration that may.
pub(super) struct Judged {
    pub config: Config,
    pub policy: Policy,
    pub facts: Facts,
    /// Warnings.
    pub report: Report,
    /// How many files it has.
    pub files: usize,
}

/// What a name service would have known.
const NAMES: &str = "; a reload looks for names in /etc/passwd and /etc/group alone: of any other account give the \
    number, or restart portreeved";

/// Judges what was read.
pub(super) fn judge(fixed: &Fixed, bundle: Bundle) -> Result<Judged, Report> {
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
                unknown.help += NAMES;
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
            Ok(Judged { facts: facts(&config), policy, report, files, config })
        }
        _ => Err(report),
    }
}

/// It cannot change now, but the next start should not fail for it.
fn capability_text(config: &Config, findings: &mut Findings) {
    if let Some(text) = &config.security.capabilities
        && let Err(error) = capability::parse(&text.value)
    {
        let span = config.within(text, error.span.clone());
        let found = config.error(span, error.problem.to_string(), error.remedy());
        findings.error("security.capabilities", Exit::Config, found);
    }
}
