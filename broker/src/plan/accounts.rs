//! Resolves the users and groups of the configuration with this host's name services.

use nix::unistd::{Gid, Uid};

use super::{Findings, missing};
use crate::config::{Config, IdRange, PeerName, Spanned};
use crate::confine::identity::{self, AccountError, Identity};
use crate::failure::Exit;
use crate::policy::Policy;

const STEP: &str = "identity";

/// The worker's user, group and supplementary groups, resolved.
pub(super) fn identity(config: &Config, findings: &mut Findings) -> Option<Identity> {
    let security = &config.security;
    if let Some(range) = &security.user_namespace {
        check_unused(config, range, findings);
        return Some(Identity::of_namespace(range.value));
    }
    let user = account(config, &security.user, security.user_name(), "user", identity::user, findings);
    let group = account(config, &security.group, security.group_name(), "group", identity::group, findings);
    let named = security.supplemental_groups.iter();
    let groups: Vec<_> =
        named.map(|name| resolved(config, name, identity::group(&name.value), findings)).collect();
    let groups: Option<Vec<Gid>> = groups.into_iter().collect();
    if let (Some(user), Some(name)) = (user, &security.user)
        && user.is_root()
    {
        findings.add(config.warning(
            name.span,
            "security.user is root: the worker runs as uid 0 without any capability, so it cannot access other \
             users' files",
            "use a separate user, or chown the files that the worker needs to root",
        ));
    }
    Some(Identity { user: user?, group: group?, groups: groups?, namespace: None })
}

/// Refuses ids of a user namespace that others on this host have: accounts, and users to whom ids are delegated for namespaces
/// of their own. See passwd(5), group(5), subuid(5).
fn check_unused(config: &Config, range: &Spanned<IdRange>, findings: &mut Findings) {
    const FILES: [(&str, &str); 4] =
        [("/etc/passwd", "user"), ("/etc/group", "group"), ("/etc/subuid", ""), ("/etc/subgid", "")];
    for (path, kind) in FILES {
        // A host without such a file delegates no ids, or has accounts elsewhere.
        let Ok(text) = std::fs::read(path) else { continue };
        let text = String::from_utf8_lossy(&text);
        let rows = text.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let [first, count] = match kind {
                "" => [fields.next()?.parse().ok()?, fields.next()?.parse().ok()?],
                _ => [fields.nth(1)?.parse().ok()?, 1],
            };
            Some((name, first, count))
        });
        // Ids that are delegated to root are reserved for its programs.
        let of_others = rows.filter(|(name, ..)| !kind.is_empty() || !["root", "0"].contains(name));
        let mut overlapping = of_others.filter(|(_, first, count)| range.value.overlaps(*first, *count));
        if let Some((name, first, count)) = overlapping.next() {
            let what = match kind {
                "" => format!("{path} delegates the ids {first}:{count} to {name:?}"),
                kind => format!("{first} is the id of the {kind} {name:?}"),
            };
            let message = format!("the ids of security.user_namespace are not free: {what}");
            let help = "choose ids that nobody has, and reserve them: root:FIRST:COUNT in /etc/subuid and /etc/subgid";
            findings.error(STEP, Exit::Config, config.error(range.span, message, help));
        }
    }
}

/// Resolves the configured account or the default one.
fn account<T>(
    config: &Config,
    named: &Option<Spanned<String>>,
    name: &str,
    option: &str,
    find: fn(&str) -> Result<T, AccountError>,
    findings: &mut Findings,
) -> Option<T> {
    match named {
        Some(named) => resolved(config, named, find(name), findings),
        None if !findings.trusts_defaults() => None,
        None => match find(name) {
            Ok(id) => Some(id),
            Err(error) => {
                let message = format!("{error}, and security.{option} is not set");
                findings.error(STEP, Exit::NoUser, missing(config, message, error.remedy()));
                None
            }
        },
    }
}

fn resolved<T>(
    config: &Config,
    name: &Spanned<String>,
    result: Result<T, AccountError>,
    findings: &mut Findings,
) -> Option<T> {
    match result {
        Ok(id) => Some(id),
        Err(error) => {
            findings.error(STEP, Exit::NoUser, config.error(name.span, error.to_string(), error.remedy()));
            None
        }
    }
}

/// The group of the control socket's file; root's group by default.
pub(super) fn socket_group(config: &Config, findings: &mut Findings) -> Option<Gid> {
    match &config.broker.socket_group {
        Some(name) => resolved(config, name, identity::group(&name.value), findings),
        None => Some(Gid::from_raw(0)),
    }
}

/// The policy, with the names of the `peer` scopes resolved.
pub fn policy(config: &Config, findings: &mut Findings) -> Option<Policy> {
    let mut resolve = |name: &PeerName| match name {
        PeerName::User(user) => identity::user(user).map(Uid::as_raw).ok(),
        PeerName::Group(group) => identity::group(group).map(Gid::as_raw).ok(),
    };
    match Policy::new(config, &mut resolve) {
        Ok(policy) => Some(policy),
        Err(report) => {
            for unknown in report.diagnostics() {
                findings.error("broker.peer", Exit::NoUser, unknown.clone());
            }
            None
        }
    }
}
