//! A cluster of three hosts: network namespaces, each with a member of the engine, a broker with a worker, and a coordinator.
//!
//! Each host is connected to two bridges: `eth1` to the service network of [`lan`], with the floating addresses, and `eth0` to
//! the network of the engine. The host `client` is in the service network only; there the [`wire`] is watched. All hosts share
//! one kernel, and so one clock.

pub mod fault;
pub mod fence;
pub mod gateway;
pub mod history;
pub mod host;
pub mod measure;
pub mod referee;
pub mod row;
pub mod wire;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::certificates::Authority;
use crate::etcd::{MemberSettings, Tls, initial_cluster};
use crate::neighbour::MacAddress;
use crate::{Host, eventually, lan};
use gateway::Gateway;
use host::ClusterHost;

/// The nodes. Each is also the name of a network namespace.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// The host that watches the service network.
pub const CLIENT: &str = "client";
/// The floating addresses. The last follows the one before it: it has no claim of its own.
pub const ADDRESSES: [&str; 6] =
    ["10.1.1.11", "10.1.1.12", "10.1.1.13", "2001:db8::11", "10.1.1.14", "10.1.1.15"];
/// The address that follows another one, and that one.
pub const FOLLOWER: (&str, &str) = ("10.1.1.15", "10.1.1.14");
/// The block of further addresses: see [`Settings::more`].
pub const MORE: &str = "10.3.0.0/16";
/// How the name of a node begins that had another name before.
pub const RENAMED: &str = "other-";
/// The name of the cluster.
pub const GROUP: &str = "test";

/// How the cluster is configured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// L, in seconds.
    pub lease: u64,
    /// The values of `failback` and `on_engine_loss`.
    pub failback: &'static str,
    /// See `failback`.
    pub on_engine_loss: &'static str,
    /// How many IPv4 addresses there are beyond [`ADDRESSES`]; see [`more_addresses`].
    pub more: u32,
    /// Whether the clocks of the coordinators differ by hours: their wall clocks, and their boot clocks, which also differ from
    /// those of their brokers.
    pub are_clocks_apart: bool,
    /// Whether the coordinators evict a node already after half of its lease, which breaks the promises of the cluster.
    pub impatient: bool,
}

impl Default for Settings {
    /// The shortest lease. A node that returns takes no address back, so that a test sees what the fault moves.
    fn default() -> Self {
        Self {
            lease: 3,
            failback: "manual",
            on_engine_loss: "release",
            more: 0,
            are_clocks_apart: false,
            impatient: false,
        }
    }
}

impl Settings {
    /// L.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease)
    }

    /// D: how long the others wait for a beat of a node. The lateness is that of hosts with a fence.
    pub fn patience(&self) -> Duration {
        self.lease() + Duration::from_millis(500).max(self.lease() / 6) + Duration::from_millis(10)
    }
}

/// A running cluster.
pub struct Cluster {
    /// How it is configured.
    pub settings: Settings,
    /// Its hosts, in the order of [`NODES`].
    pub hosts: Vec<ClusterHost>,
    /// The members whose disks are slow.
    pub slow_disks: Vec<fault::SlowDisk>,
}

/// All floating addresses.
pub fn addresses() -> Vec<IpAddr> {
    ADDRESSES.iter().map(|address| address.parse().unwrap()).collect()
}

/// The first `count` addresses of [`MORE`].
pub fn more_addresses(count: u32) -> impl Iterator<Item = IpAddr> {
    (1..=count).map(|number| IpAddr::V4(Ipv4Addr::from_bits(0x0a03_0000 + number)))
}

/// The host that has a node of this name, which may have been renamed.
pub fn host_of(name: &str) -> &str {
    name.strip_prefix(RENAMED).unwrap_or(name)
}

/// The MAC address of a node in the service network.
pub fn mac_of(node: usize) -> MacAddress {
    [2, 0, 0, 0, 0, u8::try_from(node + 2).unwrap()]
}

/// The name of the host with that MAC address.
pub fn name_of(mac: MacAddress) -> String {
    let node = (0..NODES.len()).find(|node| mac_of(*node) == mac);
    node.map_or_else(|| format!("{mac:02x?}"), |node| NODES[node].to_owned())
}

/// The address of a node in the network of the engine.
pub fn engine_address(node: usize) -> String {
    format!("10.2.2.{}", node + 1)
}

/// The port of a node at the bridge of the service network.
pub fn service_port(node: usize) -> String {
    format!("port{}", node + 2)
}

/// The port of a node at the bridge of the engine's network.
pub fn engine_port(node: usize) -> String {
    format!("engine{}", node + 1)
}

fn create_networks() {
    let names: Vec<&str> = NODES.iter().copied().chain([CLIENT]).collect();
    lan::create(&names);
    lan::ip("-n switch link add br1 type bridge forward_delay 0 mcast_snooping 0");
    lan::ip("-n switch link set br1 up");
    for (node, name) in NODES.iter().enumerate() {
        let port = engine_port(node);
        lan::ip(&format!("-n switch link add {port} type veth peer name eth0 netns {name}"));
        lan::ip(&format!("-n switch link set {port} master br1 up"));
        lan::ip(&format!("-n {name} link set eth0 up"));
        lan::ip(&format!("-n {name} addr add {}/24 dev eth0", engine_address(node)));
    }
    fault::prepare_packet_filter();
}

fn members(host: &Host) -> Vec<MemberSettings> {
    let authority = Authority::create(&host.path(""), "engine-ca");
    let member = |node: usize| {
        let address = engine_address(node);
        let (client, peer) = (format!("https://{address}:2379"), format!("http://{address}:2380"));
        let issued = authority.issue(NODES[node], &[&address]);
        MemberSettings {
            name: NODES[node].to_owned(),
            host: Some(NODES[node].to_owned()),
            // The last value counts: the test reads by the loopback interface.
            arguments: vec![
                "--listen-client-urls".to_owned(),
                format!("{client},http://127.0.0.1:{}", gateway::PORT),
            ],
            client,
            peer,
            tls: Some(Tls {
                server: issued.clone(),
                client_authority: Some(authority.certificate.clone()),
                etcdctl: (authority.certificate.clone(), issued),
            }),
            heartbeat_ms: 100,
            election_ms: 500,
            ..MemberSettings::default()
        }
    };
    let mut members: Vec<MemberSettings> = (0..NODES.len()).map(member).collect();
    let cluster = initial_cluster(&members);
    members.iter_mut().for_each(|member| member.cluster.clone_from(&cluster));
    members
}

impl Cluster {
    /// Creates the networks, and starts the engine and the brokers; no coordinator yet.
    #[track_caller]
    pub fn prepare(host: &Host, settings: Settings) -> Self {
        create_networks();
        let members = crate::etcd::start_all(host, members(host));
        let hosts = (0..).zip(members).map(|(node, member)| ClusterHost::new(host, node, member, &settings));
        let mut cluster = Self { hosts: hosts.collect(), settings, slow_disks: Vec::new() };
        cluster.hosts.iter_mut().for_each(ClusterHost::start_broker);
        cluster
    }

    /// Starts all coordinators.
    pub fn start_coordinators(&mut self) {
        let impatient = self.settings.impatient;
        if self.settings.are_clocks_apart {
            fault::set_clocks_apart(self);
        }
        self.hosts.iter_mut().for_each(|host| host.start_coordinator(impatient));
    }

    /// The node whose member leads the engine.
    #[track_caller]
    pub fn engine_leader(&self) -> usize {
        let is_leader = |node: &usize| Gateway::of(NODES[*node]).is_leader();
        eventually("a leader of the engine", || (0..NODES.len()).find(is_leader))
    }
}
