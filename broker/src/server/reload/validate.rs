//! Validation of a new configuration, by the broker itself in its confinement, with the code that validates it at start.

use std::collections::{HashMap, HashSet};

use super::restart_only::RestartOnly;
use crate::capability;
use crate::config::{self, Bundle, Config, Diagnostic, Pace, Peer, PeerName, Report, Snapshot};
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
    /// The accounts that its `peer` scopes name, deleted ones too.
    pub accounts: HashSet<PeerName>,
}

/// The additional remedy for an account of a name service, which only a restart can look up.
const NAME_SERVICE: &str = "; a reload looks names up only in /etc/passwd and /etc/group: give the number of any other \
    account, or restart portreeved";

/// Validates what the reader process has read.
///
/// Other tasks run meanwhile, see [`Pace`].
pub(super) async fn validate(fixed: &RestartOnly, bundle: Bundle) -> Result<Validated, Report> {
    let (mut config, warnings) = config::replay(&fixed.started.path, &bundle, &Pace::shared()).await?;
    if let Some((file, error)) = bundle.accounts_unreadable() {
        let message =
            format!("cannot be read by the process that reads the configuration for a reload: {error}");
        let help = "make it readable for root without capabilities, or restart portreeved";
        return Err(Diagnostic::about_file(&file, message, help).into());
    }
    let ids: HashMap<PeerName, Option<u32>> = bundle.accounts().collect();
    drop(bundle);
    let mut findings = Findings::of(warnings.into());
    let accounts: HashSet<PeerName> =
        config.broker.peers.iter().map(|peer| peer.name.value.clone()).collect();
    drop_deleted(fixed, &mut config, &ids, &mut findings);
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
            Ok(Validated { snapshot: Snapshot::of(&config), policy, report, files, config, accounts })
        }
        _ => Err(report),
    }
}

/// Drops the `peer` scopes of accounts that the configuration in force names and that have been deleted since: whoever gets
/// their ids next must not get their permits. To refuse the whole configuration would keep these permits in force. An
/// account that no configuration named before is a mistake, as at the start.
fn drop_deleted(
    fixed: &RestartOnly,
    config: &mut Config,
    ids: &HashMap<PeerName, Option<u32>>,
    findings: &mut Findings,
) {
    let was_named = fixed.accounts.borrow();
    let is_deleted = |peer: &Peer| {
        ids.get(&peer.name.value) == Some(&None)
            && !peer.name.value.is_number()
            && was_named.contains(&peer.name.value)
    };
    let (deleted, others): (Vec<Peer>, Vec<Peer>) =
        std::mem::take(&mut config.broker.peers).into_iter().partition(is_deleted);
    config.broker.peers = others;
    for peer in deleted {
        let (account, name) = match &peer.name.value {
            PeerName::User(name) => ("user", name),
            PeerName::Group(name) => ("group", name),
        };
        let message =
            format!("the {account} {name:?} has been deleted from this host: this scope allows nothing");
        let help = "remove this peer scope: portreeved does not start with it";
        findings.add(config.warning(peer.name.span, message, help));
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
