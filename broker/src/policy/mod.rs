//! The policy: which peer is allowed which request. Without a rule that allows it, a request is denied.
//!
//! A [`Policy`] is made from a configuration. It decides on names, endpoints and addresses alone: it opens nothing and
//! makes no system call. A decision gives a permit, which shares the rules that allow it, or a [`Denied`], which names
//! the nearest rule, but only among the rules of the same peer.
#![forbid(unsafe_code)]

mod address;
mod capability_check;
mod cluster_settings;
mod denied;
mod floating;
mod grant;
mod listen;
mod page;
mod peers;
mod permit;
mod ports;
mod resource;
mod rule;

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::rc::Rc;

use portreeve_protocol::message::OPERATIONS;

use crate::config::{Cluster, Config, PeerName, Report, Resources};

pub use address::Destination;
pub use capability_check::capability_check;
pub use denied::Denied;
pub use floating::FloatingListener;
pub use listen::ipv4_endpoint;
pub use permit::{AddressPermit, LeasePermit, ListenPermit, OperationPermit, Permit, Place};
pub use ports::merged_ports;
pub use rule::Rule;

use grant::{Entry, Grant};
use peers::PeerGrant;
use resource::{Kind, Pattern};

/// The peer that sends a request, as policy knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requester {
    /// The worker, identified by the channel that it inherited. It is allowed every listener scope and every permit.
    Worker,
    /// A process that connected to the control socket, as the kernel identifies it (SO_PEERCRED and SO_PEERGROUPS, see
    /// unix(7)). User 0 is allowed whatever the configuration permits to any peer, other users what their `peer`
    /// scopes allow.
    Local {
        /// The user id.
        uid: u32,
        /// The group id and all supplemental ones.
        gids: Vec<u32>,
    },
}

impl std::fmt::Display for Requester {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Requester::Worker => out.write_str("the worker"),
            Requester::Local { uid, .. } => write!(out, "user {uid}"),
        }
    }
}

/// What a configuration permits.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Vec<Rc<Rule>>,
    /// Everything that is permitted: to the worker and to user 0.
    all: Grant,
    peers: Vec<PeerGrant>,
    /// Indices of `peers`.
    users: HashMap<u32, Vec<usize>>,
    groups: HashMap<u32, Vec<usize>>,
    user_names: BTreeMap<u32, String>,
    tcp_ports: Vec<RangeInclusive<u16>>,
    topology: Rc<Cluster>,
    floating: floating::Floating,
}

/// Operations that the worker is never allowed: they are for the administrator of the broker.
const NOT_FOR_THE_WORKER: [&str; 3] = ["reload", "restart-worker", "signal-worker"];

/// Operations that only user 0 is allowed, whatever a `peer` scope says: another broker replaces this one.
const FOR_ROOT_ONLY: [&str; 1] = ["takeover"];

/// Operations that every peer of the control socket with a `peer` scope is allowed.
/// `policy` returns the peer's own rules only.
const FOR_EVERY_PEER: [&str; 3] = ["hello", "ping", "policy"];

impl Policy {
    /// The policy of a configuration. `resolve` gives the id of a user or group by name; a name without an id is an
    /// error with its place. A name of digits alone is the id itself.
    pub fn new(config: &Config, resolve: &mut dyn FnMut(&PeerName) -> Option<u32>) -> Result<Self, Report> {
        let topology = Rc::new(config.cluster.clone());
        let mut policy = Policy { tcp_ports: ports::tcp(config), topology, ..Policy::default() };
        let permits = policy.add_rules(config);
        policy.add_peers(config, &permits, resolve)?;
        Ok(policy)
    }

    /// Whether a peer is allowed an operation at all. The resources that a request names are decided one by one.
    pub fn operation(&self, requester: &Requester, name: &str) -> Result<OperationPermit, Denied> {
        let allowed = match requester {
            Requester::Local { uid: 0, .. } => is_operation(name),
            _ if FOR_ROOT_ONLY.contains(&name) => false,
            Requester::Worker => is_operation(name) && !NOT_FOR_THE_WORKER.contains(&name),
            Requester::Local { .. } => {
                let for_every_peer = FOR_EVERY_PEER.contains(&name);
                let mut scopes = self.grants(requester).filter_map(|(_, scope)| scope);
                scopes.any(|scope| for_every_peer || scope.allows(name))
            }
        };
        match allowed {
            true => Ok(OperationPermit),
            false => Err(Denied::operation(requester, name)),
        }
    }

    /// The operations that a peer is allowed, by name.
    pub fn operations(&self, requester: &Requester) -> Vec<&'static str> {
        let names = OPERATIONS.iter().map(|(_, name)| *name);
        names.filter(|name| self.operation(requester, name).is_ok()).collect()
    }

    /// The names of the users that `peer` scopes name.
    pub fn user_names(&self) -> &BTreeMap<u32, String> {
        &self.user_names
    }

    /// Whether any scope is about this peer. All others are allowed nothing.
    pub fn names(&self, requester: &Requester) -> bool {
        self.grants(requester).next().is_some()
    }

    /// The resources of which a rule permits a limit.
    pub fn limited_resources(&self) -> Resources {
        let limits = self.all.entries(Kind::Limit).filter_map(|(entry, _)| match entry {
            Entry::Pattern(Pattern::Limits(limit)) => Some(limit.resource),
            _ => None,
        });
        limits.collect()
    }

    /// The TCP ports that the rules permit, as ranges in order that do not touch each other.
    pub fn tcp_ports(&self) -> &[RangeInclusive<u16>] {
        &self.tcp_ports
    }
}

/// Whether an operation of that name exists.
fn is_operation(name: &str) -> bool {
    OPERATIONS.iter().any(|(_, known)| *known == name)
}
