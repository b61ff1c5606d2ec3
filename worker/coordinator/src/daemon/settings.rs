//! What the program is configured to do: the broker's `cluster` scope, and the addresses that its policy lets this user move.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portreeve::address::Bounds;
use portreeve::cluster::{ClusterSettings, Engine, Failback, HealthCheck, OnEngineLoss};
use portreeve::policy::{PolicyPage, TopologyBlock};
use portreeve::{Client, Error};

use super::failure::Failure;
use super::links::Working;
use super::peers;
use crate::core::decide::{Config, Facts};
use crate::core::record::{Block, Piece};
use crate::engine::etcd;

/// How late the kernel ends an address that the fence covers; with 100 ticks a second.
const FENCED: Duration = Duration::from_millis(15);
/// Without the fence: an IPv4 address this or an eighth of the lease, an IPv6 address that on a busy host.
const UNFENCED_IPV4: Duration = Duration::from_millis(1_140);
const UNFENCED_IPV6: Duration = Duration::from_secs(15);
/// The operations that the program needs beyond those of every peer, and the groups of the option `allow` that contain them.
const NEEDED: [(&str, &str); 5] = [
    ("add-address", "address"),
    ("remove-address", "address"),
    ("renew-all", "address"),
    ("list-addresses", "address"),
    ("cluster", "cluster"),
];

/// All of it. The program starts again when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The `cluster` scope.
    pub cluster: ClusterSettings,
    /// Its engine.
    pub engine: Engine,
    /// The addresses that lead, each with its preferred node.
    pub declared: Piece,
    /// The interface of each block.
    pub interfaces: BTreeMap<(IpAddr, u8), String>,
    /// What ends the leases if the broker does not.
    pub bounds: Bounds,
}

/// Why there are no settings.
#[derive(Debug)]
pub enum Unusable {
    /// The session with the broker failed.
    Session(Error),
    /// The configuration must be changed.
    Config(Failure),
}

impl From<Error> for Unusable {
    fn from(error: Error) -> Self {
        Unusable::Session(error)
    }
}

impl Settings {
    /// Reads them from the broker.
    pub async fn read(client: &Client, bounds: Bounds) -> Result<Self, Unusable> {
        require_operations(client).map_err(Unusable::Config)?;
        let cluster = client.cluster_settings().await?;
        let Some(engine) = cluster.engine.clone() else {
            let text = "the broker's configuration names no engine: add engine { endpoints = ( \"https://HOST:2379\" ) }, \
                        cluster_group and nodename to its cluster scope, and reload the broker";
            return Err(Unusable::Config(Failure::Config(text.to_owned())));
        };
        let mut declared = Piece::new();
        let mut interfaces = BTreeMap::new();
        let mut after = 0;
        loop {
            let PolicyPage { topology, floating, next, .. } = client.policy(after).await?;
            for TopologyBlock { block, prefix, interface, .. } in topology.into_vec() {
                interfaces.insert((block, prefix), interface.to_string());
            }
            for address in floating.into_vec() {
                if address.follows.is_none() && !address.interface.is_empty() {
                    let preference = Some(&*address.preference).filter(|name| !name.is_empty());
                    declared.insert(address.address, preference.map(Into::into));
                }
            }
            if next == 0 {
                break;
            }
            after = next;
        }
        Ok(Settings { cluster, engine, declared, interfaces, bounds })
    }

    /// The settings of the decisions.
    pub fn config(&self, boot: String, nonce: u64) -> Config {
        let milliseconds = |value: u32| Duration::from_millis(value.into());
        let cluster = &self.cluster;
        Config {
            name: (*cluster.nodename).into(),
            boot,
            nonce,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lease: milliseconds(cluster.lease_ms),
            heartbeat: milliseconds(cluster.heartbeat_ms),
            late: self.late(),
            mature: milliseconds(cluster.view_mature_ms),
            balance_interval: milliseconds(cluster.view_balance_ms),
            balance_set: usize::try_from(cluster.balance_set_size).unwrap_or(usize::MAX),
            is_auto: cluster.failback == Failback::Auto,
            hold: cluster.on_engine_loss == OnEngineLoss::Hold,
            peer: cluster.peer_listen.to_string(),
            declared: self.declared.clone(),
        }
    }

    /// Where the engine is.
    pub fn etcd(&self) -> etcd::Settings {
        let Engine { endpoints, ca, certificate, key, user, password_file, .. } = &self.engine;
        etcd::Settings {
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            ca: ca.to_string(),
            certificate: certificate.to_string(),
            key: key.to_string(),
            user: user.to_string(),
            password_file: password_file.to_string(),
            group: self.cluster.group.to_string(),
        }
    }

    /// Where the coordinator accepts connections of others.
    ///
    /// # Errors
    /// What the broker says is not an address and a port.
    pub fn peer_listen(&self) -> Result<Option<SocketAddr>, Failure> {
        let text = &*self.cluster.peer_listen;
        if text.is_empty() {
            return Ok(None);
        }
        let at = text.parse().map_err(|_| {
            Failure::Config(format!("peer_listen is {text:?}: write ADDRESS:PORT, and reload the broker"))
        })?;
        Ok(Some(at))
    }

    /// How coordinators authenticate each other: as they do in the engine.
    pub fn peers(&self) -> peers::Identity {
        let Engine { ca, certificate, key, .. } = &self.engine;
        let files =
            peers::Files { ca: ca.to_string(), certificate: certificate.to_string(), key: key.to_string() };
        let group = self.cluster.group.to_string();
        peers::Identity { group, files: (!files.certificate.is_empty()).then_some(files) }
    }

    /// How late the kernel may end one of the addresses.
    fn late(&self) -> Duration {
        let lease = Duration::from_millis(self.cluster.lease_ms.into());
        let late = |address: &IpAddr| match address {
            IpAddr::V4(_) if self.bounds.ipv4_fenced => FENCED,
            IpAddr::V4(_) => UNFENCED_IPV4.max(lease / 8),
            IpAddr::V6(_) if self.bounds.ipv6_fenced => FENCED,
            IpAddr::V6(_) => UNFENCED_IPV6,
        };
        self.declared.keys().map(late).max().unwrap_or(FENCED)
    }

    /// The checks of the node.
    pub fn checks(&self) -> impl Iterator<Item = &HealthCheck> {
        self.cluster.checks.iter()
    }

    /// What the decisions have to know about the host.
    pub fn facts(&self, working: &Working, failed: &BTreeMap<usize, String>) -> Facts {
        let down = self.interfaces.iter().filter(|(_, interface)| !working.contains(*interface));
        let down = down.map(|((address, prefix), _)| Block { address: *address, prefix: *prefix }).collect();
        Facts { sick: failed.values().next().cloned(), down }
    }
}

fn require_operations(client: &Client) -> Result<(), Failure> {
    let welcome = client.welcome();
    let offers = |operation: &str| {
        welcome.as_ref().is_some_and(|welcome| welcome.operations.iter().any(|name| &**name == operation))
    };
    match NEEDED.iter().find(|(operation, _)| !offers(operation)) {
        None => Ok(()),
        Some((operation, group)) => {
            let peer = welcome.as_ref().map(|welcome| welcome.peer.to_string()).unwrap_or_default();
            Err(Failure::NoPermission(format!(
                "the broker does not allow {operation} to {peer:?}: add {group} to \"allow\" of its peer scope, with a permit \
                 for the addresses, check that security.capabilities contains cap_net_admin, and reload the broker"
            )))
        }
    }
}
