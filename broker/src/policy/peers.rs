//! Peers of the control socket: each `peer` scope by the user or group that it names.

use std::collections::HashMap;
use std::rc::Rc;

use super::grant::Grant;
use super::resource::{Kind, Resource};
use super::rule::RuleId;
use super::{Policy, Requester, Rule};
use crate::config::{Config, GROUPS, PeerName, Report};

/// What one `peer` scope allows: its operations, on the resources that its permits name. Several scopes of one peer add
/// up, but the operations of one scope do not apply to the permits of another.
#[derive(Debug)]
pub(super) struct PeerGrant {
    allow: Vec<String>,
    pub grant: Grant,
}

impl PeerGrant {
    /// Whether the scope allows an operation, by its own name or its group's.
    pub fn allows(&self, operation: &str) -> bool {
        self.allow.iter().any(|word| {
            word == operation
                || GROUPS.iter().any(|(group, names)| group == word && names.contains(&operation))
        })
    }

    /// Whether the scope allows any operation of a group.
    pub fn allows_any(&self, group: &str) -> bool {
        let names = GROUPS.iter().find(|(word, _)| *word == group);
        names.is_some_and(|(_, names)| names.iter().any(|name| self.allows(name)))
    }
}

/// A name of digits alone is the id itself. The highest id stands for none, see setresuid(2).
fn number(name: &str) -> Option<u32> {
    let digits = name.bytes().all(|byte| byte.is_ascii_digit());
    let id = name.parse().ok().filter(|_| digits);
    id.filter(|id| *id != u32::MAX)
}

impl Policy {
    /// Adds the `peer` scopes.
    pub(super) fn add_peers(
        &mut self,
        config: &Config,
        permits: &HashMap<String, Grant>,
        resolve: &mut dyn FnMut(&PeerName) -> Option<u32>,
    ) -> Result<(), Report> {
        let mut unknown = Vec::new();
        for peer in &config.broker.peers {
            let (account, name) = match &peer.name.value {
                PeerName::User(name) => ("user", name),
                PeerName::Group(name) => ("group", name),
            };
            let Some(id) = number(name).or_else(|| resolve(&peer.name.value)) else {
                let message = format!("there is no {account} {name:?} on this host");
                let help = format!("add the {account}, correct its name, or remove this peer scope");
                unknown.push(config.error(peer.name.span, message, help));
                continue;
            };
            let mut grant = Grant::default();
            for permit in peer.permit.iter().filter_map(|name| permits.get(&name.value)) {
                grant.join(permit);
            }
            let by_id = match &peer.name.value {
                PeerName::User(_) => &mut self.users,
                PeerName::Group(_) => &mut self.groups,
            };
            if let PeerName::User(name) = &peer.name.value
                && number(name).is_none()
            {
                self.user_names.entry(id).or_insert_with(|| name.clone());
            }
            by_id.entry(id).or_default().push(self.peers.len());
            let allow = peer.allow.iter().map(|word| word.value.clone()).collect();
            self.peers.push(PeerGrant { allow, grant });
        }
        match unknown.is_empty() {
            true => Ok(()),
            false => Err(unknown.into()),
        }
    }

    /// The rule that allows a peer a resource.
    pub(super) fn find(&self, requester: &Requester, resource: &Resource<'_>) -> Option<&Rc<Rule>> {
        self.search(requester, resource.kind(), |grant| grant.find(resource))
    }

    /// The first rule that `lookup` returns for one of the peer's grants, among those with a `peer` scope that allows an
    /// operation on this kind of resource.
    pub(super) fn search(
        &self,
        requester: &Requester,
        kind: Kind,
        lookup: impl Fn(&Grant) -> Option<RuleId>,
    ) -> Option<&Rc<Rule>> {
        let usable =
            |scope: Option<&PeerGrant>| scope.is_none_or(|scope| scope.allows_any(kind.allow_word()));
        let mut grants = self.grants(requester).filter(|(_, scope)| usable(*scope));
        self.rule(grants.find_map(|(grant, _)| lookup(grant))?)
    }

    /// A user that was connected to the predecessor, and whose groups are not known before it connects again: it is taken to
    /// be in every group that a `peer` scope names. What this user is not allowed is denied whatever its groups are. Its next
    /// session needs a permit with its real groups.
    pub fn former_user(&self, uid: u32) -> Requester {
        Requester::Local { uid, gids: self.groups.keys().copied().collect() }
    }

    /// The `peer` scopes of a user and its groups.
    fn scopes(&self, uid: u32, gids: &[u32]) -> impl Iterator<Item = &PeerGrant> {
        let groups = gids.iter().filter_map(|gid| self.groups.get(gid));
        let scopes = self.users.get(&uid).into_iter().chain(groups).flatten();
        scopes.filter_map(|at| self.peers.get(*at))
    }

    /// All grants of a peer, each with the `peer` scope that limits the operations on it.
    pub(super) fn grants(&self, requester: &Requester) -> impl Iterator<Item = (&Grant, Option<&PeerGrant>)> {
        let (all, uid, gids) = match requester {
            Requester::Worker | Requester::Local { uid: 0, .. } => (Some(&self.all), 0, [].as_slice()),
            Requester::Local { uid, gids } => (None, *uid, gids.as_slice()),
        };
        let scopes = self.scopes(uid, gids).filter(move |_| all.is_none());
        all.map(|all| (all, None)).into_iter().chain(scopes.map(|scope| (&scope.grant, Some(scope))))
    }
}
