//! What each peer is allowed: the worker, user 0 and each `peer` scope, with the rules.

use serde_json::{Value, json};

use crate::config::{Config, PeerName};
use crate::confine::identity;
use crate::policy::{Policy, Requester, Rule};

/// One peer.
pub(super) struct Peer<'p> {
    name: String,
    /// The place in the configuration that names it.
    place: Option<String>,
    operations: Vec<&'static str>,
    rules: Vec<&'p Rule>,
}

/// Every possible peer: the worker if one is configured, the others if there is a control socket.
pub(super) fn all<'p>(config: &Config, policy: &'p Policy) -> Vec<Peer<'p>> {
    let peer = |name: String, place: Option<String>, requester: &Requester| Peer {
        name,
        place,
        operations: policy.operations(requester),
        rules: policy.rules_for(requester),
    };
    let mut all = Vec::new();
    if let Some(worker) = &config.worker {
        all.push(peer("worker".to_owned(), Some(config.place(worker.span)), &Requester::Worker));
    }
    let Some(socket) = &config.broker.socket else {
        return all;
    };
    let root = Requester::Local { uid: 0, gids: vec![0] };
    all.push(peer("user 0".to_owned(), Some(config.place(socket.span)), &root));
    for scope in &config.broker.peers {
        // No user has the highest id: a group's scope is shown for a member that no other scope names.
        let (name, id, requester) = match &scope.name.value {
            PeerName::User(user) => {
                let Ok(uid) = identity::user(user).map(nix::unistd::Uid::as_raw) else { continue };
                (format!("user {user}"), uid, Requester::Local { uid, gids: Vec::new() })
            }
            PeerName::Group(group) => {
                let Ok(gid) = identity::group(group).map(nix::unistd::Gid::as_raw) else { continue };
                (format!("group {group}"), gid, Requester::Local { uid: u32::MAX, gids: vec![gid] })
            }
        };
        let is_user_0 = matches!(requester, Requester::Local { uid: 0, .. });
        if !is_user_0 {
            all.push(peer(format!("{name} ({id})"), Some(config.place(scope.name.span)), &requester));
        }
    }
    all
}

impl Peer<'_> {
    /// As JSON.
    pub fn json(&self) -> Value {
        let rules: Vec<Value> = self.rules.iter().map(|rule| self::rule(rule)).collect();
        json!({ "peer": self.name, "place": self.place, "operations": self.operations, "rules": rules })
    }

    /// As text.
    pub fn text(&self) -> String {
        let place = self.place.as_ref().map_or_else(String::new, |place| format!(", by {place}"));
        let mut out = format!("{}{place}\n  {:<14}{}\n", self.name, "allowed", self.operations.join(" "));
        for (number, rule) in self.rules.iter().enumerate() {
            out += &format!("  {:<14}{rule}\n", if number == 0 { "rules" } else { "" });
        }
        out
    }
}

/// A rule as JSON.
pub(super) fn rule(rule: &Rule) -> Value {
    json!({ "place": rule.place, "text": rule.text })
}
