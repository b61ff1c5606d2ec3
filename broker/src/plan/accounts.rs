//! Users and groups of the configuration, by this host's name services.

use nix::unistd::{Gid, Uid};

use super::{Findings, unsaid};
use crate::config::{Config, PeerName, Spanned};
use crate::confine::identity::{self, AccountError, Identity};
use crate::failure::Exit;
use crate::policy::Policy;

const STEP: &str = "identity";

/// The worker's identity, every name of it looked up.
pub(super) fn identity(config: &Config, findings: &mut Findings) -> Option<Identity> {
    let security = &config.security;
    let user = account(config, &security.user, security.user_name(), "user", identity::user, findings);
    let group = account(config, &security.group, security.group_name(), "group", identity::group, findings);
    let named = security.supplemental_groups.iter();
    let groups: Vec<_> =
        named.map(|name| found(config, name, identity::group(&name.value), findings)).collect();
    let groups: Option<Vec<Gid>> = groups.into_iter().collect();
    if let (Some(user), Some(name)) = (user, &security.user)
        && user.is_root()
    {
        findings.tell(config.warning(
            name.span,
            "security.user is root: the capability sets are exclusive, so the worker holds none and loses root's \
             access to other users' files",
            "give it a user of its own, or chown the files that it needs to root",
        ));
    }
    Some(Identity { user: user?, group: group?, groups: groups? })
}

/// An account that is named, or the one that stands for it.
fn account<T>(
    config: &Config,
    named: &Option<Spanned<String>>,
    name: &str,
    option: &str,
    find: fn(&str) -> Result<T, AccountError>,
    findings: &mut Findings,
) -> Option<T> {
    match named {
        Some(named) => found(config, named, find(name), findings),
        None if !findings.trusts_defaults() => None,
        None => match find(name) {
            Ok(id) => Some(id),
            Err(error) => {
                let message = format!("{error}, and security.{option} names no other");
                findings.error(STEP, Exit::NoUser, unsaid(config, message, error.remedy()));
                None
            }
        },
    }
}

fn found<T>(
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

/// The group of the control socket's file; root's where none is named.
pub(super) fn socket_group(config: &Config, findings: &mut Findings) -> Option<Gid> {
    match &config.broker.socket_group {
        Some(name) => found(config, name, identity::group(&name.value), findings),
        None => Some(Gid::from_raw(0)),
    }
}

/// The policy, with the `peer` scopes' names looked up.
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
