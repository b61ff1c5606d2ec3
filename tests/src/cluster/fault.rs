//! The faults, each with what it must lead to.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::gateway::{Gateway, decode_base64, encode_base64};
use super::host::{ClusterHost, health_file};
use super::{Cluster, GROUP, NODES, RENAMED, Settings, engine_port, service_port};
use crate::{eventually, lan, namespaces, process};

/// A fault of one node, the victim, or of the engine.
pub struct Fault {
    /// Its name, for the command line and the report.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// What it must lead to.
    pub expected: Expected,
    /// How long it lasts.
    pub lasts: Lasts,
    /// Begins it.
    pub begin: fn(&mut Cluster, usize),
    /// Ends it.
    pub end: fn(&mut Cluster, usize),
}

/// What a fault leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Every address stays where it is, and answers all the time.
    Nothing,
    /// The addresses of the victim move to other nodes when the patience of those ends.
    Failover,
    /// The victim hands its addresses over at once.
    Handover,
    /// No address moves; all are silent for a while, and answer again soon after the fault.
    Outage,
    /// Some time after the fault, all addresses answer. The engine may have lost its data.
    Recovery,
}

/// How long a fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// Until the victim's addresses answer elsewhere.
    UntilMoved,
    /// This long.
    For(Duration),
    /// As long as a lease.
    Lease,
    /// So long that every address of a node without engine is silent.
    PastLease,
}

const SHORT: Lasts = Lasts::For(Duration::from_millis(700));

/// All faults of the coordinator's table.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "coordinator-restarted",
        what: "SIGKILL of a coordinator, and a new one at once",
        expected: Expected::Nothing,
        lasts: Lasts::Lease,
        begin: |cluster, victim| restart_coordinator(cluster, victim),
        end: |_, _| (),
    },
    Fault {
        name: "all-coordinators-restarted",
        what: "SIGKILL of all coordinators, and new ones at once",
        expected: Expected::Nothing,
        lasts: Lasts::Lease,
        begin: |cluster, _| (0..NODES.len()).for_each(|node| restart_coordinator(cluster, node)),
        end: |_, _| (),
    },
    Fault {
        name: "coordinator-killed",
        what: "SIGKILL of a coordinator",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |cluster, victim| cluster.hosts[victim].kill_coordinator(),
        end: start_coordinator,
    },
    Fault {
        name: "coordinator-stopped",
        what: "SIGSTOP of a coordinator",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |cluster, victim| process::suspend(coordinator_pid(cluster, victim)),
        end: |cluster, victim| signal(coordinator_pid(cluster, victim), Signal::CONT),
    },
    Fault {
        name: "coordinator-terminated",
        what: "SIGTERM of a coordinator, as of a service manager",
        expected: Expected::Handover,
        lasts: Lasts::UntilMoved,
        begin: |cluster, victim| {
            if let Some(coordinator) = &cluster.hosts[victim].coordinator {
                coordinator.signal(Signal::TERM);
            }
        },
        end: |cluster, victim| {
            if let Some(coordinator) = cluster.hosts[victim].coordinator.take() {
                coordinator.terminate();
            }
            start_coordinator(cluster, victim);
        },
    },
    Fault {
        name: "broker-killed",
        what: "SIGKILL of a broker",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |cluster, victim| cluster.hosts[victim].kill_broker(),
        end: |cluster, victim| cluster.hosts[victim].start_broker(),
    },
    Fault {
        name: "broker-stopped",
        what: "SIGSTOP of a broker",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |cluster, victim| process::suspend(broker_pid(cluster, victim)),
        end: |cluster, victim| signal(broker_pid(cluster, victim), Signal::CONT),
    },
    Fault {
        name: "node-killed",
        what: "SIGKILL of all processes of a node, and both cables pulled",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |cluster, victim| {
            unplug(victim);
            cluster.hosts[victim].kill_all();
        },
        end: |cluster, victim| {
            drop_nothing();
            start_all(cluster, victim);
        },
    },
    Fault {
        name: "node-stopped",
        what: "SIGSTOP of all processes of a node",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |cluster, victim| cluster.hosts[victim].signal_all(Signal::STOP),
        end: |cluster, victim| cluster.hosts[victim].signal_all(Signal::CONT),
    },
    Fault {
        name: "node-isolated",
        what: "both ports of a node are black holes",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |_, victim| unplug(victim),
        end: |_, _| drop_nothing(),
    },
    Fault {
        name: "engine-unreachable",
        what: "the port of a node to the engine is a black hole; its addresses stay reachable",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |_, victim| drop_frames(&both_ways(&engine_port(victim))),
        end: |_, _| drop_nothing(),
    },
    Fault {
        name: "engine-deaf",
        what: "only what the engine's network sends to a node is lost",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |_, victim| drop_frames(&[format!("oifname {}", engine_port(victim))]),
        end: |_, _| drop_nothing(),
    },
    Fault {
        name: "engine-mute",
        what: "only what a node sends to the engine's network is lost",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |_, victim| drop_frames(&[format!("iifname {}", engine_port(victim))]),
        end: |_, _| drop_nothing(),
    },
    Fault {
        name: "engine-carrier-lost",
        what: "the interface to the engine loses its carrier",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |_, victim| lan_link(&engine_port(victim), "down"),
        end: |_, victim| lan_link(&engine_port(victim), "up"),
    },
    Fault {
        name: "partition",
        what: "a node and the others do not hear each other in either network, but clients hear both",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |_, victim| partition(victim),
        end: |_, _| drop_nothing(),
    },
    Fault {
        name: "carrier-lost",
        what: "the interface of the addresses loses its carrier",
        expected: Expected::Handover,
        lasts: Lasts::UntilMoved,
        begin: |_, victim| lan_link(&service_port(victim), "down"),
        end: |_, victim| lan_link(&service_port(victim), "up"),
    },
    Fault {
        name: "check-failed",
        what: "the check of a node fails",
        expected: Expected::Handover,
        lasts: Lasts::UntilMoved,
        begin: |_, victim| fs::remove_file(health_file(victim)).unwrap(),
        end: |_, victim| fs::write(health_file(victim), "").unwrap(),
    },
    Fault {
        name: "client-port-blocked",
        what: "a node reaches no other member's port for clients (2379)",
        expected: Expected::Nothing,
        lasts: Lasts::PastLease,
        begin: |_, victim| drop_port(victim, 2379),
        end: |_, _| drop_nothing(),
    },
    Fault {
        name: "peer-port-blocked",
        what: "a node's member reaches no other member (2380)",
        expected: Expected::Nothing,
        lasts: Lasts::PastLease,
        begin: |_, victim| drop_port(victim, 2380),
        end: |_, _| drop_nothing(),
    },
    Fault {
        name: "member-killed",
        what: "SIGKILL of the engine's member on a node",
        expected: Expected::Nothing,
        lasts: Lasts::Lease,
        begin: |cluster, victim| cluster.hosts[victim].member.kill(),
        end: |cluster, victim| cluster.hosts[victim].member.restart(),
    },
    Fault {
        name: "leader-killed",
        what: "SIGKILL of the engine's leader",
        expected: Expected::Nothing,
        lasts: Lasts::Lease,
        begin: |cluster, _| {
            let leader = cluster.engine_leader();
            cluster.hosts[leader].member.kill();
        },
        end: |cluster, _| restart_killed_members(cluster),
    },
    Fault {
        name: "leader-stopped",
        what: "SIGSTOP of the engine's leader",
        expected: Expected::Nothing,
        lasts: Lasts::Lease,
        begin: |cluster, _| process::suspend(cluster.hosts[cluster.engine_leader()].member.pid()),
        end: |cluster, _| signal_members(cluster, Signal::CONT),
    },
    Fault {
        name: "leader-disk-hangs",
        what: "fdatasync of the engine's leader hangs",
        expected: Expected::Nothing,
        lasts: Lasts::PastLease,
        begin: |cluster, _| {
            let leader = cluster.engine_leader();
            slow_disk(cluster, leader);
        },
        end: |cluster, _| cluster.slow_disks.clear(),
    },
    Fault {
        name: "engine-paused",
        what: "SIGSTOP of all members for 0.7 s",
        expected: Expected::Nothing,
        lasts: SHORT,
        begin: |cluster, _| signal_members(cluster, Signal::STOP),
        end: |cluster, _| signal_members(cluster, Signal::CONT),
    },
    Fault {
        name: "engine-stopped",
        what: "SIGSTOP of all members",
        expected: Expected::Outage,
        lasts: Lasts::PastLease,
        begin: |cluster, _| signal_members(cluster, Signal::STOP),
        end: |cluster, _| signal_members(cluster, Signal::CONT),
    },
    Fault {
        name: "engine-killed",
        what: "SIGKILL of all members",
        expected: Expected::Outage,
        lasts: Lasts::PastLease,
        begin: |cluster, _| cluster.hosts.iter_mut().for_each(|host| host.member.kill()),
        end: |cluster, _| restart_killed_members(cluster),
    },
    Fault {
        name: "quorum-lost",
        what: "SIGKILL of two of three members",
        expected: Expected::Outage,
        lasts: Lasts::PastLease,
        begin: |cluster, victim| {
            let others = cluster.hosts.iter_mut().filter(|host| host.node != victim);
            others.for_each(|host| host.member.kill());
        },
        end: |cluster, _| restart_killed_members(cluster),
    },
    Fault {
        name: "disks-hang",
        what: "fdatasync of all members hangs",
        expected: Expected::Outage,
        lasts: Lasts::PastLease,
        begin: |cluster, _| (0..NODES.len()).for_each(|node| slow_disk(cluster, node)),
        end: |cluster, _| cluster.slow_disks.clear(),
    },
    Fault {
        name: "power-cut",
        what: "SIGKILL of all processes of all nodes",
        expected: Expected::Recovery,
        lasts: Lasts::Lease,
        begin: |cluster, _| cluster.hosts.iter_mut().for_each(ClusterHost::kill_all),
        end: |cluster, _| (0..NODES.len()).for_each(|node| start_all(cluster, node)),
    },
    Fault {
        name: "engine-wiped",
        what: "all members start again without data",
        expected: Expected::Recovery,
        lasts: SHORT,
        begin: |cluster, _| cluster.hosts.iter_mut().for_each(|host| host.member.wipe()),
        end: |cluster, _| restart_killed_members(cluster),
    },
    Fault {
        name: "engine-restored",
        what: "all members start again with the data of before a move",
        expected: Expected::Recovery,
        lasts: SHORT,
        begin: |cluster, victim| {
            back_up(cluster);
            if let Some(coordinator) = cluster.hosts[victim].coordinator.take() {
                coordinator.terminate();
            }
            std::thread::sleep(cluster.settings.lease() / 2);
            start_coordinator(cluster, victim);
            std::thread::sleep(cluster.settings.lease() / 2);
            cluster.hosts.iter_mut().for_each(|host| host.member.wipe());
        },
        end: |cluster, _| {
            restore(cluster);
            restart_killed_members(cluster);
        },
    },
    Fault {
        name: "clock-stepped",
        what: "the wall clock of a coordinator jumps by 400 days and back",
        expected: Expected::Nothing,
        lasts: Lasts::Lease,
        begin: step_clock,
        end: |_, victim| fs::remove_file(clock_file(victim)).unwrap(),
    },
    Fault {
        name: "nodename-changed",
        what: "a node gets another name, and its broker loads that",
        expected: Expected::Handover,
        lasts: Lasts::UntilMoved,
        begin: |cluster, victim| rename(cluster, victim, &format!("{RENAMED}{}", NODES[victim])),
        end: name_back,
    },
    Fault {
        name: "nodename-changed-at-restart",
        what: "SIGKILL of a coordinator, and a new one at once whose node has another name",
        expected: Expected::Failover,
        lasts: Lasts::UntilMoved,
        begin: |cluster, victim| {
            cluster.hosts[victim].kill_coordinator();
            rename(cluster, victim, &format!("{RENAMED}{}", NODES[victim]));
            start_coordinator(cluster, victim);
        },
        end: name_back,
    },
    Fault {
        name: "nodename-taken",
        what: "a node gets the name of another one, and its broker loads that",
        expected: Expected::Handover,
        lasts: Lasts::UntilMoved,
        begin: |cluster, victim| rename(cluster, victim, NODES[(victim + 1) % NODES.len()]),
        end: |cluster, victim| {
            let other = NODES[(victim + 1) % NODES.len()];
            let coordinator = cluster.hosts[victim].coordinator.as_mut().expect("a coordinator");
            coordinator.log.wait_for(&["another host", &format!("is the node {other} of this cluster")]);
            eventually("the coordinator to end", || coordinator.ended());
            cluster.hosts[victim].kill_coordinator();
            name_back(cluster, victim);
            start_coordinator(cluster, victim);
        },
    },
    Fault {
        name: "foreign-keys",
        what: "another program writes keys and values of all kinds under the group's prefix",
        expected: Expected::Nothing,
        lasts: Lasts::PastLease,
        begin: |cluster, _| write_foreign_keys(cluster),
        end: |cluster, _| delete_foreign_keys(cluster),
    },
    Fault {
        name: "records-overwritten",
        what: "another program overwrites and deletes what the nodes have written about themselves",
        expected: Expected::Nothing,
        lasts: Lasts::Lease,
        begin: overwrite_records,
        end: |_, _| (),
    },
    Fault {
        name: "lease-changed",
        what: "the lease of a node is doubled, and its broker loads that",
        expected: Expected::Nothing,
        lasts: Lasts::PastLease,
        begin: |cluster, victim| {
            let lease = cluster.settings.lease;
            let (old, new) = (format!("lease = {lease}\n"), format!("lease = {}\n", 2 * lease));
            let host = &mut cluster.hosts[victim];
            host.text = host.text.replace(&old, &new);
            host.configure(&host.text.clone());
            let beat = prefixed(&format!("beat/{}", NODES[victim]));
            let written = format!("\"lease_ms\":{}", 2_000 * lease);
            eventually("the new lease", || read(&beat)?.contains(&written).then_some(()));
            // From now on, the referee grants every node the longer one.
            cluster.settings.lease = 2 * lease;
        },
        end: |_, _| (),
    },
];

/// The fault with that name.
#[track_caller]
pub fn fault(name: &str) -> &'static Fault {
    FAULTS.iter().find(|fault| fault.name == name).unwrap_or_else(|| panic!("no fault is named {name:?}"))
}

impl Lasts {
    /// The time, unless the fault lasts until the addresses have moved.
    pub fn time(self, settings: &Settings) -> Option<Duration> {
        match self {
            Lasts::UntilMoved => None,
            Lasts::For(time) => Some(time),
            Lasts::Lease => Some(settings.lease()),
            Lasts::PastLease => Some(settings.lease() + Duration::from_millis(1_500)),
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn coordinator_pid(cluster: &Cluster, node: usize) -> u32 {
    cluster.hosts[node].coordinator.as_ref().expect("a coordinator").pid()
}

fn broker_pid(cluster: &Cluster, node: usize) -> u32 {
    cluster.hosts[node].broker.as_ref().expect("a broker").pid()
}

fn start_coordinator(cluster: &mut Cluster, node: usize) {
    let impatient = cluster.settings.impatient;
    cluster.hosts[node].start_coordinator(impatient);
}

fn restart_coordinator(cluster: &mut Cluster, node: usize) {
    cluster.hosts[node].kill_coordinator();
    start_coordinator(cluster, node);
}

/// Gives a node another name, which its broker loads.
fn rename(cluster: &mut Cluster, node: usize, name: &str) {
    let text = cluster.hosts[node].text.replace(&nodename(NODES[node]), &nodename(name));
    cluster.hosts[node].configure(&text);
}

fn nodename(name: &str) -> String {
    format!("nodename = {name}\n")
}

/// Gives a node the name that it had at first.
fn name_back(cluster: &mut Cluster, node: usize) {
    let text = cluster.hosts[node].text.clone();
    cluster.hosts[node].configure(&text);
}

/// A key of the cluster in the engine.
fn prefixed(path: &str) -> String {
    format!("/portreeve/{GROUP}/{path}")
}

/// Calls the engine until a member replies.
#[track_caller]
fn call(path: &str, body: &Value) -> Value {
    eventually("a reply of the engine", || {
        NODES
            .iter()
            .find_map(|node| Gateway::of(node).call(path, body).ok())
            .filter(|reply| reply["header"].is_object())
    })
}

#[track_caller]
fn write(key: &[u8], value: &[u8]) {
    call("kv/put", &json!({ "key": encode_base64(key), "value": encode_base64(value) }));
}

#[track_caller]
fn delete(key: &[u8]) {
    call("kv/deleterange", &json!({ "key": encode_base64(key) }));
}

/// The value of a key, if it exists.
#[track_caller]
fn read(key: &str) -> Option<String> {
    let reply = call("kv/range", &json!({ "key": encode_base64(key.as_bytes()) }));
    let value = decode_base64(reply["kvs"][0]["value"].as_str()?);
    Some(String::from_utf8_lossy(&value).into_owned())
}

/// The first key that begins so, without the prefix of the cluster.
#[track_caller]
fn first_key(path: &str) -> String {
    let key = prefixed(path);
    let end = [&key.as_bytes()[..key.len() - 1], &[key.as_bytes()[key.len() - 1] + 1]].concat();
    let range = json!({ "key": encode_base64(key.as_bytes()), "range_end": encode_base64(&end), "limit": 1 });
    let reply = call("kv/range", &range);
    let key = decode_base64(reply["kvs"][0]["key"].as_str().expect("a key"));
    String::from_utf8(key).unwrap().replace(&prefixed(""), "")
}

/// A beat of a node that does not exist.
const GHOST: &str = r#"{"nonce":1,"boot":"none","process":1,"sequence":1,"lease_ms":3000,"late_ms":10}"#;

/// Keys and values that no coordinator writes, each after the prefix of the cluster.
fn foreign_keys() -> Vec<(Vec<u8>, Vec<u8>)> {
    let texts = [
        ("x", "1"),
        ("beat", ""),
        ("beat/n1/x", GHOST),
        ("beat/nobody", "{"),
        ("claim/nobody", "{}"),
        ("claim/2001:db8:0::11", r#"{"epoch":99}"#),
        ("claim/10.1.1.200", "[]"),
        ("have/x/y", "{}"),
        ("have/0000000000000000/0", "{}"),
        ("node/nobody", "null"),
        ("want/10.1.1.11", "somebody"),
        ("want/10.1.1.200", r#"{"node":"nobody"}"#),
    ];
    let mut keys: Vec<(Vec<u8>, Vec<u8>)> =
        texts.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
    keys.push((b"not UTF-8 \xff".to_vec(), b"\xff".to_vec()));
    keys.push((b"beat/\xff".to_vec(), GHOST.into()));
    keys.push((b"claim/10.1.1.201".to_vec(), b"\xff".to_vec()));
    keys.push((b"large".to_vec(), vec![b'x'; 100_000]));
    keys
}

/// The key in etcd.
fn foreign(key: &[u8]) -> Vec<u8> {
    [prefixed("").as_bytes(), key].concat()
}

/// Also writes a node that does not exist, but seems to be ready and to have the same configuration as the others.
#[track_caller]
fn write_foreign_keys(_: &Cluster) {
    foreign_keys().iter().for_each(|(key, value)| write(&foreign(key), value));
    let mut record: Value = serde_json::from_str(&read(&prefixed("node/n1")).expect("a node")).unwrap();
    (record["nonce"], record["created"]) = (1.into(), Value::Null);
    write(prefixed("beat/ghost").as_bytes(), GHOST.as_bytes());
    write(prefixed("node/ghost").as_bytes(), record.to_string().as_bytes());
}

#[track_caller]
fn delete_foreign_keys(_: &Cluster) {
    eventually("the eviction of a node that shows no life", || {
        read(&prefixed("beat/ghost")).is_none().then_some(())
    });
    foreign_keys().iter().for_each(|(key, _)| delete(&foreign(key)));
    delete(prefixed("node/ghost").as_bytes());
}

/// Overwrites and deletes the records of two nodes and the declaration of all, and waits until each is there again.
#[track_caller]
fn overwrite_records(_: &mut Cluster, victim: usize) {
    let records = [victim, (victim + 1) % NODES.len()].map(|node| format!("node/{}", NODES[node]));
    for path in records.iter().chain([&first_key("have/")]) {
        let key = prefixed(path);
        let before = read(&key).expect("a record");
        let await_again = || {
            eventually(&format!("{path} to be written again"), || (read(&key)? == before).then_some(()));
        };
        write(key.as_bytes(), b"garbage");
        await_again();
        delete(key.as_bytes());
        await_again();
    }
}

/// Starts what does not run on a node. The coordinator may be up before the engine.
fn start_all(cluster: &mut Cluster, node: usize) {
    restart_killed(&mut cluster.hosts[node]);
    cluster.hosts[node].start_broker();
    start_coordinator(cluster, node);
}

fn restart_killed(host: &mut ClusterHost) {
    if !process::is_running(host.member.pid()) {
        host.member.restart();
    }
}

fn restart_killed_members(cluster: &mut Cluster) {
    cluster.hosts.iter_mut().for_each(restart_killed);
}

fn signal_members(cluster: &Cluster, signal: Signal) {
    cluster.hosts.iter().for_each(|host| host.member.signal(signal));
}

fn nft(words: &[&str]) {
    namespaces::run(Command::new("ip").args(["netns", "exec", "switch", "nft"]).args(words), "nftables");
}

/// Creates the table of the bridges' packet filter. It has no rules while there is no fault.
pub(super) fn prepare_packet_filter() {
    nft(&[
        "add table bridge faults; add chain bridge faults forward { type filter hook forward priority 0; }",
    ]);
}

/// Drops the frames that match one of these expressions of nft(8).
pub fn drop_frames(matches: &[String]) {
    let rules: String =
        matches.iter().map(|one| format!("add rule bridge faults forward {one} drop; ")).collect();
    nft(&[&rules]);
}

/// Ends all such rules.
pub fn drop_nothing() {
    nft(&["flush chain bridge faults forward"]);
}

fn both_ways(port: &str) -> [String; 2] {
    [format!("iifname {port}"), format!("oifname {port}")]
}

/// Makes both ports of a node black holes; their carrier stays.
pub(super) fn unplug(node: usize) {
    drop_frames(&[both_ways(&service_port(node)), both_ways(&engine_port(node))].concat());
}

/// Drops what a node sends to this TCP port of others, and what others send to this port of the node.
fn drop_port(node: usize, number: u16) {
    let ways = both_ways(&engine_port(node));
    let matches = ways.iter().map(|way| format!("{way} tcp dport {number}"));
    drop_frames(&matches.collect::<Vec<_>>());
}

pub(super) fn partition(victim: usize) {
    let mut matches = both_ways(&engine_port(victim)).to_vec();
    for other in (0..NODES.len()).filter(|other| *other != victim) {
        for (from, to) in [(victim, other), (other, victim)] {
            matches.push(format!("iifname {} oifname {}", service_port(from), service_port(to)));
        }
    }
    drop_frames(&matches);
}

pub(super) fn lan_link(port: &str, state: &str) {
    lan::ip(&format!("-n switch link set {port} {state}"));
}

/// A member whose calls of fdatasync hang. Dropping it ends that.
pub struct SlowDisk(Child);

/// Makes a member's calls of fdatasync hang. The Go runtime makes them without the C library, so no preloaded library can.
fn slow_disk(cluster: &mut Cluster, node: usize) {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"]);
    command.args(["-e", "inject=fdatasync:delay_enter=600s", "-p"]);
    command.arg(cluster.hosts[node].member.pid().to_string()).stdin(Stdio::null());
    let child = command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run strace: {error}. Install the package strace"));
    cluster.slow_disks.push(SlowDisk(child));
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // strace detaches from the member when it ends by this signal.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM); // it may have ended
        let _ = self.0.wait();
    }
}

fn directory(node: usize) -> PathBuf {
    PathBuf::from(format!("/run/host/etcd-{}", NODES[node]))
}

fn copy(from: PathBuf, to: PathBuf) {
    namespaces::run(Command::new("cp").arg("-a").args([from, to]), "coreutils");
}

fn backup(node: usize) -> PathBuf {
    directory(node).with_extension("backup")
}

/// Copies the data of all members, as of one instant.
fn back_up(cluster: &Cluster) {
    cluster.hosts.iter().for_each(|host| process::suspend(host.member.pid()));
    for node in 0..NODES.len() {
        let _ = fs::remove_dir_all(backup(node)); // there may be none
        copy(directory(node), backup(node));
    }
    signal_members(cluster, Signal::CONT);
}

/// Replaces the data of all members, which do not run, by the copies.
fn restore(cluster: &Cluster) {
    for host in &cluster.hosts {
        copy(backup(host.node), directory(host.node));
    }
}

/// While this file exists, a coordinator's wall clock is wrong by the seconds in it.
fn clock_file(node: usize) -> PathBuf {
    PathBuf::from(format!("/run/host/{}.clock", NODES[node]))
}

/// Makes the coordinator of a node start with a library that steps its clock, because no namespace has a wall clock of its own.
fn preload_clock(cluster: &mut Cluster, node: usize) {
    let (source, library) = (directory(node).with_extension("c"), directory(node).with_extension("so"));
    fs::write(&source, include_str!("clock.c")).unwrap();
    namespaces::run(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]), "gcc");
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    cluster.hosts[node].environment =
        vec![("LD_PRELOAD".to_owned(), text(library)), ("CLOCK_FILE".to_owned(), text(clock_file(node)))];
}

fn step_clock(cluster: &mut Cluster, node: usize) {
    preload_clock(cluster, node);
    restart_coordinator(cluster, node);
    std::thread::sleep(cluster.settings.lease() / 3);
    fs::write(clock_file(node), (400 * 86_400).to_string()).unwrap();
}

/// Makes the coordinators start with clocks that differ by hours: one's wall clock is behind, another's is ahead, and so are two
/// boot clocks, which no broker's is.
pub(super) fn set_clocks_apart(cluster: &mut Cluster) {
    const HOUR: i64 = 3_600;
    for (node, (wall, boot)) in
        [(-5 * HOUR, 26 * HOUR), (0, 0), (7 * 24 * HOUR, 3 * HOUR)].into_iter().enumerate()
    {
        preload_clock(cluster, node);
        fs::write(clock_file(node), wall.to_string()).unwrap();
        cluster.hosts[node].clocks_ahead = Duration::from_secs(boot.cast_unsigned());
    }
}
