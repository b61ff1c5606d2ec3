//! The policy: who may ask for what. Without a rule that allows it, everything is refused.
//!
//! A [`Policy`] is made from a configuration and decides on words, endpoints and addresses alone; it opens
//! nothing and asks nobody. Allowing allocates nothing; a refusal says what came nearest, but only of what
//! the same requester may have.
#![forbid(unsafe_code)]

mod address;
mod denied;
mod grant;
mod listen;
mod moving;
mod peers;
mod ports;
mod rule;
mod told;
mod unserved;

use std::collections::HashMap;
use std::ops::RangeInclusive;

use portreeve_protocol::message::OPERATIONS;

use crate::config::{Config, PeerName, Report};

pub use address::AddressPermit;
pub use denied::Denied;
pub use listen::ListenPermit;
pub use moving::MovingListener;
pub use rule::Rule;
pub use unserved::unserved;

use grant::Grant;
use peers::PeerGrant;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requester {
    /// The worker, known by the channel that it inherited. It may use every listener scope and every permit.
    Worker,
    /// Who connected to the control socket, as the kernel says (SO_PEERCRED and SO_PEERGROUPS, see
    /// unix(7)). User 0 may do whatever the configuration permits anyone; others what their `peer` scopes say.
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
    rules: Vec<Rule>,
    /// The worker's and user 0's.
    all: Grant,
    peers: Vec<PeerGrant>,
    /// Indices of `peers`.
    users: HashMap<u32, Vec<usize>>,
    groups: HashMap<u32, Vec<usize>>,
    tcp_ports: Vec<RangeInclusive<u16>>,
    topology: crate::config::Cluster,
    moving: moving::Moving,
}

/// What the worker may not ask for: that is for who administers the broker.
const NOT_FOR_THE_WORKER: [&str; 1] = ["reload"];

/// What root alone may ask for, whatever a `peer` scope says: another broker replaces this one.
const FOR_ROOT: [&str; 1] = ["takeover"];

/// What everybody may ask for who may ask at all.
const FOR_ALL: [&str; 2] = ["hello", "ping"];

impl Policy {
    /// The policy of a configuration. `resolve` gives the id of a user or group by name; a name that has none
    /// is an error that says where it stands. A name of digits alone is the id itself.
    pub fn new(config: &Config, resolve: &mut dyn FnMut(&PeerName) -> Option<u32>) -> Result<Self, Report> {
        let mut policy =
            Policy { tcp_ports: ports::tcp(config), topology: config.cluster.clone(), ..Policy::default() };
        let permits = policy.rules_of(config);
        policy.peers_of(config, &permits, resolve)?;
        Ok(policy)
    }

    /// Whether an operation may be asked for at all. What it may be asked about is decided by itself.
    pub fn operation(&self, who: &Requester, name: &str) -> Result<(), Denied> {
        let allowed = match who {
            Requester::Local { uid: 0, .. } => known(name),
            _ if FOR_ROOT.contains(&name) => false,
            Requester::Worker => known(name) && !NOT_FOR_THE_WORKER.contains(&name),
            Requester::Local { .. } => {
                let for_all = FOR_ALL.contains(&name);
                self.find(who, |peer| (for_all || peer.allows(name)).then_some(()), |_| None).is_some()
            }
        };
        match allowed {
            true => Ok(()),
            false => Err(Denied::operation(who, name)),
        }
    }

    /// The operations that somebody may ask for, by name.
    pub fn operations(&self, who: &Requester) -> Vec<&'static str> {
        let names = OPERATIONS.iter().map(|(_, name)| *name);
        names.filter(|name| self.operation(who, name).is_ok()).collect()
    }

    /// Whether anything permits a resource limit.
    pub fn has_limits(&self) -> bool {
        self.all.has_limits()
    }

    /// The TCP ports that anything permits, as ranges in order that do not touch each other.
    pub fn tcp_ports(&self) -> &[RangeInclusive<u16>] {
        &self.tcp_ports
    }
}

/// Whether there is an operation of the name.
fn known(name: &str) -> bool {
    let groups = crate::config::GROUPS.iter().flat_map(|(_, names)| *names);
    FOR_ALL.contains(&name)
        || groups.copied().any(|known| known == name)
        || OPERATIONS.iter().any(|(_, known)| *known == name)
}
