//! Peers of the control socket: each `peer` scope by the user or group that it names.

use std::collections::HashMap;

use super::grant::Grant;
use super::{Policy, Requester};
use crate::config::{Config, GROUPS, PeerName, Report};

/// What one `peer` scope gives: its operations, on what its permits name. Scopes add up, but the operations
/// of one scope do not reach the permits of another.
#[derive(Debug)]
pub(super) struct PeerGrant {
    allow: Vec<String>,
    pub grant: Grant,
}

impl PeerGrant {
    /// Whether an operation is among those of the scope, by its own name or its group's.
    pub fn allows(&self, operation: &str) -> bool {
        self.allow.iter().any(|word| {
            word == operation
                || GROUPS.iter().any(|(group, names)| group == word && names.contains(&operation))
        })
    }

    /// Whether any operation of a group is among them.
    pub fn allows_any(&self, group: &str) -> bool {
        let names = GROUPS.iter().find(|(word, _)| *word == group);
        names.is_some_and(|(_, names)| names.iter().any(|name| self.allows(name)))
    }
}

/// A name of digits alone as the id that it is. The highest id stands for none, see setresuid(2).
fn number(name: &str) -> Option<u32> {
    let digits = name.bytes().all(|byte| byte.is_ascii_digit());
    let id = name.parse().ok().filter(|_| digits);
    id.filter(|id| *id != u32::MAX)
}

impl Policy {
    /// Adds the `peer` scopes.
    pub(super) fn peers_of(
        &mut self,
        config: &Config,
        permits: &HashMap<String, Grant>,
        resolve: &mut dyn FnMut(&PeerName) -> Option<u32>,
    ) -> Result<(), Report> {
        let mut unknown = Vec::new();
        for peer in &config.broker.peers {
            let (what, name) = match &peer.name.value {
                PeerName::User(name) => ("user", name),
                PeerName::Group(name) => ("group", name),
            };
            let Some(id) = number(name).or_else(|| resolve(&peer.name.value)) else {
                let message = format!("there is no {what} {name:?} on this host");
                let help = format!("add the {what}, correct its name, or remove this peer scope");
                unknown.push(config.error(peer.name.span, message, help));
                continue;
            };
            let mut grant = Grant::default();
            for permit in peer.permit.iter().filter_map(|name| permits.get(&name.value)) {
                grant.join(permit);
            }
            let of = match &peer.name.value {
                PeerName::User(_) => &mut self.users,
                PeerName::Group(_) => &mut self.groups,
            };
            of.entry(id).or_default().push(self.peers.len());
            let allow = peer.allow.iter().map(|word| word.value.clone()).collect();
            self.peers.push(PeerGrant { allow, grant });
        }
        match unknown.is_empty() {
            true => Ok(()),
            false => Err(unknown.into()),
        }
    }

    /// The first of the requester's grants that gives something: `peer` is asked of each `peer` scope,
    /// `all` of the grant of those who may have all.
    pub(super) fn find<T>(
        &self,
        who: &Requester,
        peer: impl Fn(&PeerGrant) -> Option<T>,
        all: impl Fn(&Grant) -> Option<T>,
    ) -> Option<T> {
        match who {
            Requester::Worker | Requester::Local { uid: 0, .. } => all(&self.all),
            Requester::Local { uid, gids } => self.scopes(*uid, gids).find_map(peer),
        }
    }

    /// The `peer` scopes of a user and its groups.
    fn scopes(&self, uid: u32, gids: &[u32]) -> impl Iterator<Item = &PeerGrant> {
        let groups = gids.iter().filter_map(|gid| self.groups.get(gid));
        let scopes = self.users.get(&uid).into_iter().chain(groups).flatten();
        scopes.filter_map(|at| self.peers.get(*at))
    }

    /// All grants of the requester, each with the `peer` scope that limits which operations use it.
    pub(super) fn grants(&self, who: &Requester) -> impl Iterator<Item = (&Grant, Option<&PeerGrant>)> {
        let (all, uid, gids) = match who {
            Requester::Worker | Requester::Local { uid: 0, .. } => (Some(&self.all), 0, [].as_slice()),
            Requester::Local { uid, gids } => (None, *uid, gids.as_slice()),
        };
        let scopes = self.scopes(uid, gids).filter(move |_| all.is_none());
        all.map(|all| (all, None)).into_iter().chain(scopes.map(|scope| (&scope.grant, Some(scope))))
    }
}
