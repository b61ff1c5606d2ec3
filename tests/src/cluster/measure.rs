//! Measurements of a cluster of three hosts, and of keepalived (VRRP) on three hosts of the same kind, by the same host on the wire.
//! `tests/cluster/measure` starts them.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fault::{Expected, drop_nothing, fault, lan_link, partition, unplug};
use super::host::{ClusterHost, control_socket};
use super::referee::{Answer, longest_silence, overlap};
use super::row::{Bench, Outcome};
use super::wire::Wire;
use super::{Cluster, NODES, Settings, addresses, mac_of, service_port};
use crate::broker::Log;
use crate::neighbour::Neighbour;
use crate::wait::within;
use crate::{Host, binaries, debian, lan, namespaces, process};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How often each fault and each move is repeated.
    pub runs: usize,
    /// How long processor time and growth are measured.
    pub minutes: u64,
}

/// A measurement in a cluster of its own.
pub struct Section {
    /// Its name, for the command line and the report.
    pub name: &'static str,
    /// What it measures.
    pub what: &'static str,
    /// Measures.
    pub measure: fn(&Host, Plan) -> Value,
}

/// All measurements.
pub const SECTIONS: &[Section] = &[
    Section {
        name: "failover-3",
        what: "time until the addresses of a node answer elsewhere, by fault; lease 3 s",
        measure: |host, plan| failover(host, plan, 3),
    },
    Section {
        name: "failover-6",
        what: "the same; lease 6 s, the default",
        measure: |host, plan| failover(host, plan, 6),
    },
    Section {
        name: "failover-15",
        what: "the same; lease 15 s",
        measure: |host, plan| failover(host, plan, 15),
    },
    Section {
        name: "move",
        what: "time without an answer while an operator moves an address",
        measure: planned_moves,
    },
    Section {
        name: "cost-idle",
        what: "memory and processor time of the programs, and growth of the engine's database, with 6 addresses",
        measure: |host, plan| cost(host, plan, 0),
    },
    Section {
        name: "cost-many",
        what: "the same with 10,240 addresses",
        measure: |host, plan| cost(host, plan, MANY),
    },
    Section {
        name: "failover-many",
        what: "time until the addresses of a node with a third of 10,240 addresses answer elsewhere; lease 6 s",
        measure: failover_of_many,
    },
    Section {
        name: "keepalived",
        what: "keepalived: time until an address answers elsewhere, and how long two hosts answer, by fault",
        measure: keepalived,
    },
];

/// With [`addresses`], 10,240 addresses.
const MANY: u32 = 10_234;
/// The faults of which the time until the addresses answer elsewhere is measured.
const FAULTS: [&str; 6] =
    ["node-killed", "coordinator-killed", "engine-unreachable", "carrier-lost", "broker-killed", "partition"];
/// How long a busy machine may take for what is not measured, and for all moves of 10,240 addresses.
const LONG: Duration = Duration::from_secs(300);
/// The time between two looks at many answers.
const POLL: Duration = Duration::from_millis(100);

/// The median, the highest and all of some times, in seconds.
fn spread(times: impl IntoIterator<Item = Duration>) -> Value {
    let mut times: Vec<f64> = times.into_iter().map(|time| time.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    json!({ "median": times.get(times.len() / 2), "worst": times.last(), "all": times })
}

/// How long two hosts answered for one of the addresses, at most.
fn longest_overlap(answers: &[Answer], all: &[IpAddr]) -> Duration {
    all.iter().map(|address| overlap(answers, *address)).max().unwrap_or_default()
}

fn failover(host: &Host, plan: Plan, lease: u64) -> Value {
    let mut bench = Bench::start(host, Settings { lease, ..Settings::default() });
    let mut rows = Vec::new();
    for name in FAULTS {
        let fault = fault(name);
        assert!(matches!(fault.expected, Expected::Failover | Expected::Handover), "{name} moves addresses");
        let began = bench.now();
        let outcomes: Vec<Outcome> = (0..plan.runs).map(|_| bench.run(fault, Duration::ZERO)).collect();
        let answers = bench.wire.answers_since(began);
        rows.push(json!({
            "fault": name,
            "what": fault.what,
            "moved_in": spread(outcomes.iter().filter_map(|outcome| outcome.moved_in)),
            "ipv6_moved_in": spread(outcomes.iter().filter_map(|outcome| outcome.ipv6_moved_in)),
            "silence": spread(outcomes.iter().map(|outcome| outcome.silence)),
            "overlap": longest_overlap(&answers, &addresses()).as_secs_f64(),
            "stalled": spread(outcomes.iter().map(|outcome| outcome.stalled)),
            "violations": outcomes.iter().flat_map(|outcome| outcome.violations.clone()).collect::<Vec<_>>(),
        }));
    }
    json!({ "lease": lease, "faults": rows, "violations": bench.judge() })
}

fn planned_moves(host: &Host, plan: Plan) -> Value {
    let bench = Bench::start(host, Settings { lease: 6, ..Settings::default() });
    let address = addresses()[0];
    let silence = |_| {
        let to = (bench.holder(address) + 1) % NODES.len();
        bench.wire.take_longest_pause();
        let began = bench.now();
        let mut command = Command::new(host.binary(binaries::CLIENT));
        command.args(["cluster", "move", &address.to_string(), NODES[to], "--wait=20s"]);
        command.env("PORTREEVE_COORDINATOR_SOCKET", control_socket(0));
        namespaces::run(&mut command, "portreeve-cli");
        within(LONG, "the address at its new node", || (bench.holder(address) == to).then_some(()));
        bench.await_answers();
        let mut answers = bench.wire.answers_since(began);
        answers.retain(|answer| answer.address == address);
        let (begin, end) = longest_silence(&answers, began, bench.now()).unwrap_or_default();
        println!("silent for {:?}, stalled for {:?}", end - begin, bench.wire.take_longest_pause());
        end - begin
    };
    let silences: Vec<Duration> = (0..plan.runs).map(silence).collect();
    json!({ "silence": spread(silences), "violations": bench.judge() })
}

/// Starts a cluster with this many further addresses, and returns, for each of those, the node that has it.
fn start_with(host: &Host, settings: Settings) -> (Cluster, BTreeMap<IpAddr, usize>) {
    let count = usize::try_from(settings.more).unwrap();
    let mut cluster = Cluster::prepare(host, settings);
    let begin = Instant::now();
    cluster.start_coordinators();
    // By the hosts themselves: asking for so many addresses would slow the brokers down.
    let holders = within(LONG, "a host for each address", || {
        std::thread::sleep(10 * POLL);
        let mut holders = BTreeMap::new();
        for (node, name) in NODES.iter().enumerate() {
            let text = lan::ip(&format!("-n {name} -4 -o addr show dev {}", lan::INTERFACE));
            let words = text.split_whitespace().filter_map(|word| word.strip_suffix("/32"));
            holders.extend(words.filter_map(|word| Some((word.parse().ok()?, node))));
        }
        holders.retain(|address: &IpAddr, _| !addresses().contains(address));
        (holders.len() == count).then_some(holders)
    });
    println!("{count} further addresses have a host after {:?}", begin.elapsed());
    (cluster, holders)
}

fn failover_of_many(host: &Host, _: Plan) -> Value {
    const VICTIM: usize = 0;
    let (mut cluster, holders) = start_with(host, Settings { lease: 6, more: MANY, ..Settings::default() });
    let mine: Vec<IpAddr> =
        holders.iter().filter(|(_, node)| **node == VICTIM).map(|(address, _)| *address).collect();
    let origin = Instant::now();
    let wire = Wire::watch(Neighbour::number(NODES.len()), mine.clone(), origin);
    let first_of = |from: Duration, is_meant: fn(&Answer) -> bool| {
        within(LONG, "an answer for each address of the node", || {
            std::thread::sleep(POLL);
            let mut first: BTreeMap<IpAddr, Duration> = BTreeMap::new();
            for answer in wire.answers_since(from).iter().filter(|answer| is_meant(answer)) {
                first.entry(answer.address).or_insert(answer.at - from);
            }
            (first.len() == mine.len()).then_some(first)
        })
    };
    first_of(Duration::ZERO, |_| true);
    let began = origin.elapsed();
    (fault("node-killed").begin)(&mut cluster, VICTIM);
    let first = first_of(began, |answer| answer.mac != mac_of(VICTIM));
    let mut times: Vec<f64> = first.into_values().map(|time| time.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    json!({
        "lease": 6,
        "addresses": holders.len() + addresses().len(),
        "moved": mine.len(),
        "first": times.first(),
        "median": times[times.len() / 2],
        "last": times.last(),
    })
}

/// The processor time of processes since they started, in seconds.
fn processor_time(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<u64> = text
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse().unwrap())
            .collect();
        fields.iter().sum::<u64>()
    };
    // USER_HZ is 100 on all of Debian's architectures.
    pids.iter().map(ticks).sum::<u64>() as f64 / 100.0
}

/// The resident memory of processes in MiB; pages that they share count for each.
fn memory(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| process::status_kilobytes(*pid, "VmRSS")).sum::<u64>() as f64 / 1024.0
}

/// The processes of a host by program. The broker's are without the worker, which is the test's.
fn programs(host: &ClusterHost) -> [(&'static str, Vec<u32>); 3] {
    let broker = host.broker.as_ref().expect("a broker");
    let worker = broker.worker();
    let mut of_broker = vec![broker.pid()];
    of_broker.extend(process::descendants(broker.pid()).into_iter().filter(|pid| *pid != worker));
    let coordinator = host.coordinator.as_ref().expect("a coordinator").pid();
    [("coordinator", vec![coordinator]), ("broker", of_broker), ("etcd", vec![host.member.pid()])]
}

/// The size of a member's database, how much of it is in use, and the revision.
fn database(host: &ClusterHost) -> [f64; 3] {
    let text = host.member.etcdctl(&["endpoint", "status", "--write-out", "json"]);
    let status: Value = serde_json::from_str(&text).unwrap();
    let status = &status[0]["Status"];
    ["dbSize", "dbSizeInUse"]
        .map(|name| status[name].as_f64())
        .into_iter()
        .chain([status["header"]["revision"].as_f64()])
        .map(Option::unwrap_or_default)
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

fn cost(host: &Host, plan: Plan, more: u32) -> Value {
    let (cluster, holders) = start_with(host, Settings { lease: 6, more, ..Settings::default() });
    // The last of the claims, probes and announcements.
    std::thread::sleep(Duration::from_secs(20));
    let begin = Instant::now();
    let all: Vec<[(&str, Vec<u32>); 3]> = cluster.hosts.iter().map(programs).collect();
    let before: Vec<Vec<f64>> =
        all.iter().map(|host| host.iter().map(|(_, pids)| processor_time(pids)).collect()).collect();
    let [_, used, revision] = database(&cluster.hosts[0]);
    std::thread::sleep(Duration::from_secs(plan.minutes * 60));
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    let mut rows = Vec::new();
    for (place, name) in ["coordinator", "broker", "etcd"].into_iter().enumerate() {
        let time = |node: usize| (processor_time(&all[node][place].1) - before[node][place]) / minutes;
        let times: Vec<f64> = (0..NODES.len()).map(time).collect();
        let memories: Vec<f64> = (0..NODES.len()).map(|node| memory(&all[node][place].1)).collect();
        rows.push(json!({ "program": name, "cpu_seconds_per_minute": times, "resident_mib": memories }));
    }
    let [size_after, used_after, revision_after] = database(&cluster.hosts[0]);
    let growth = (used_after - used) / minutes * 60.0;
    json!({
        "lease": 6,
        "addresses": holders.len() + addresses().len(),
        "minutes": minutes,
        "programs": rows,
        "database": {
            "size_mib": size_after / 1_048_576.0,
            "in_use_mib": used_after / 1_048_576.0,
            "revisions_per_minute": (revision_after - revision) / minutes,
            "in_use_growth_mib_per_hour_extrapolated": growth / 1_048_576.0,
        },
    })
}

/// A router of VRRP.
struct Router {
    node: usize,
    child: Child,
    log: Log,
}

/// The address of the routers.
const VIRTUAL: &str = "10.1.1.11";

impl Router {
    fn start(node: usize) -> Self {
        let priority = 150 - 50 * node;
        let path = |what: &str| format!("/run/host/keepalived-{}.{what}", NODES[node]);
        let text = format!(
            "vrrp_instance test {{\n state BACKUP\n interface {}\n virtual_router_id 51\n priority {priority}\n \
             advert_int 1\n virtual_ipaddress {{\n {VIRTUAL}/24\n }}\n}}\n",
            lan::INTERFACE
        );
        fs::write(path("conf"), text).unwrap();
        let mut command = Command::new("keepalived");
        command.args(["--dont-fork", "--vrrp", "--log-console", "--use-file", &path("conf")]);
        command.args(["--pid", &path("pid"), "--vrrp_pid", &path("vrrp.pid")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = lan::in_host(NODES[node], || {
            command.spawn().unwrap_or_else(|error| panic!("cannot run keepalived: {error}"))
        });
        let log = Log::default();
        log.follow(child.stdout.take().unwrap());
        log.follow(child.stderr.take().unwrap());
        Self { node, child, log }
    }

    /// Kills its processes. The addresses that it added stay.
    fn kill(&mut self) {
        process::kill_trees(&[self.child.id()]);
        let _ = self.child.wait(); // it has been killed
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            self.log.lines().iter().for_each(|line| eprintln!("{}: {line:.300}", NODES[self.node]));
        }
    }
}

/// A fault of the router that has the address: its name, what it is, how it begins and how it ends.
type RouterFault = (&'static str, &'static str, fn(&mut Router), fn(&mut Router));

const ROUTER_FAULTS: [RouterFault; 4] = [
    (
        "node-killed",
        "SIGKILL of its processes, and its cable pulled",
        |router| {
            unplug(router.node);
            router.kill();
        },
        start_again,
    ),
    ("process-killed", "SIGKILL of its processes", Router::kill, start_again),
    (
        "carrier-lost",
        "the interface of the addresses loses its carrier",
        |router| {
            lan_link(&service_port(router.node), "down");
        },
        |router| lan_link(&service_port(router.node), "up"),
    ),
    (
        "partition",
        "it and the others do not hear each other, but clients hear both",
        |router| {
            partition(router.node);
        },
        |_| drop_nothing(),
    ),
];

fn start_again(router: &mut Router) {
    // What a killed router leaves behind.
    let _ = Command::new("ip")
        .args(["-n", NODES[router.node], "addr", "del", &format!("{VIRTUAL}/24"), "dev", lan::INTERFACE])
        .status(); // it may not have it
    drop_nothing();
    *router = Router::start(router.node);
}

/// How long the wire is watched after a fault of a router.
const WATCHED: Duration = Duration::from_secs(10);

fn keepalived(host: &Host, plan: Plan) -> Value {
    debian::install(host, "keepalived");
    super::create_networks();
    let version = Command::new("keepalived").arg("--version").output().unwrap().stderr;
    let version = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_owned();
    let address: IpAddr = VIRTUAL.parse().unwrap();
    let origin = Instant::now();
    let wire = Wire::watch(Neighbour::number(NODES.len()), vec![address], origin);
    let mut routers: Vec<Router> = (0..NODES.len()).map(Router::start).collect();
    let await_master = || {
        within(LONG, "the first router to answer alone", || {
            std::thread::sleep(POLL);
            let from = origin.elapsed().checked_sub(Duration::from_secs(2))?;
            let answers = wire.answers_since(from);
            (answers.len() > 50 && answers.iter().all(|answer| answer.mac == mac_of(0))).then_some(())
        });
    };
    let mut rows = Vec::new();
    for (name, what, begin, end) in ROUTER_FAULTS {
        let (mut moved, mut overlaps) = (Vec::new(), Vec::new());
        for _ in 0..plan.runs {
            await_master();
            let began = origin.elapsed();
            begin(&mut routers[0]);
            std::thread::sleep(WATCHED);
            let answers = wire.answers_since(began);
            let first = answers.iter().find(|answer| answer.mac != mac_of(0));
            moved.extend(first.map(|answer| answer.at - began));
            overlaps.push(overlap(&answers, address));
            println!("{name}: {:?} {:?}", moved.last(), overlaps.last());
            end(&mut routers[0]);
        }
        rows.push(json!({
            "fault": name,
            "what": what,
            "moved_in": spread(moved),
            "overlap": spread(overlaps),
            "watched": WATCHED.as_secs(),
        }));
    }
    json!({ "version": version, "advert_int": 1, "faults": rows })
}
