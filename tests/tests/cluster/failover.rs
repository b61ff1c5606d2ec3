//! Every fault of the coordinator's table, once. `tests/cluster/run` runs each several times and observes longer.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use portreeve_tests::cluster::fault::{Expected, FAULTS, Fault, Lasts, fault};
use portreeve_tests::cluster::row::Bench;
use portreeve_tests::cluster::{CLIENT, NODES, Settings, addresses};
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Host, eventually, exclusive, isolated_cluster, lan};

/// How long nothing may move after a fault.
const QUIET: Duration = Duration::from_secs(2);

/// The faults of each test. Those of one test hit the same cluster one after another.
const CLUSTERS: [&[&str]; 9] = [
    &[
        "coordinator-restarted",
        "all-coordinators-restarted",
        "member-killed",
        "leader-killed",
        "leader-stopped",
    ],
    &["client-port-blocked", "peer-port-blocked", "leader-disk-hangs", "engine-paused", "clock-stepped"],
    &[
        "coordinator-killed",
        "coordinator-stopped",
        "broker-killed",
        "broker-stopped",
        "node-killed",
        "node-stopped",
    ],
    &[
        "node-isolated",
        "engine-unreachable",
        "engine-deaf",
        "engine-mute",
        "engine-carrier-lost",
        "partition",
    ],
    &["coordinator-terminated", "carrier-lost", "check-failed"],
    &["engine-stopped", "engine-killed", "quorum-lost", "disks-hang"],
    &["power-cut", "engine-wiped", "engine-restored"],
    &["nodename-changed", "nodename-changed-at-restart", "nodename-taken"],
    &["foreign-keys", "records-overwritten", "lease-changed"],
];

fn run(host: &Host, cluster: usize) {
    run_with(host, cluster, Settings::default());
}

fn run_with(host: &Host, cluster: usize, settings: Settings) {
    let mut bench = Bench::start(host, settings);
    let outcomes: Vec<_> = CLUSTERS[cluster].iter().map(|name| bench.run(fault(name), QUIET)).collect();
    bench.assert_good(&outcomes);
}

/// Also with clocks that differ, on which all of these times depend if they depend on clocks.
fn clocks_apart() -> Settings {
    Settings { are_clocks_apart: true, ..Settings::default() }
}

/// The default lease. With the shortest, a node survives an election of the engine only on a machine that is not busy.
fn long_lease() -> Settings {
    Settings { lease: 6, ..Settings::default() }
}

#[test]
fn restarts_of_coordinators_and_of_engine_members_move_nothing() {
    isolated_cluster(|host| run_with(host, 0, long_lease()));
}

#[test]
fn faults_that_leave_a_node_a_way_to_the_engine_move_nothing() {
    isolated_cluster(|host| run_with(host, 1, long_lease()));
}

#[test]
fn addresses_of_killed_and_stopped_processes_move() {
    isolated_cluster(|host| run(host, 2));
}

#[test]
fn addresses_of_a_node_without_engine_move_whatever_the_clocks_of_the_hosts_show() {
    isolated_cluster(|host| run_with(host, 3, clocks_apart()));
}

#[test]
fn a_node_that_cannot_serve_hands_its_addresses_over() {
    isolated_cluster(|host| run(host, 4));
}

#[test]
fn addresses_are_silent_without_engine_and_return_with_it() {
    isolated_cluster(|host| run(host, 5));
}

#[test]
fn a_cluster_recovers_from_a_power_cut_and_from_an_engine_that_lost_its_data() {
    isolated_cluster(|host| run(host, 6));
}

/// How long all nodes hold their addresses without the engine before one of them cannot promise any more: longer than a slow
/// machine needs to bring them back.
const HOLD: Duration = Duration::from_secs(20);

/// Faults of a cluster whose nodes hold their addresses without the engine.
static HELD: [Fault; 2] = [
    Fault {
        name: "engine-killed-30s",
        what: "SIGKILL of all members for 30 s; the nodes promise not to take addresses",
        expected: Expected::Nothing,
        lasts: Lasts::For(Duration::from_secs(30)),
        begin: |cluster, victim| (fault("engine-killed").begin)(cluster, victim),
        end: |cluster, victim| (fault("engine-killed").end)(cluster, victim),
    },
    Fault {
        name: "engine-killed-and-node-cut-off",
        what: "SIGKILL of all members, and 20 s later one node cannot promise any more",
        // The node may be the last one to reach the engine again.
        expected: Expected::Recovery,
        lasts: Lasts::PastLease,
        begin: |cluster, victim| {
            (fault("engine-killed").begin)(cluster, victim);
            std::thread::sleep(HOLD);
            (fault("engine-unreachable").begin)(cluster, victim);
        },
        end: |cluster, victim| {
            (fault("engine-unreachable").end)(cluster, victim);
            (fault("engine-killed").end)(cluster, victim);
        },
    },
];

#[test]
fn addresses_stay_without_engine_while_all_nodes_promise() {
    isolated_cluster(|host| {
        let mut bench = Bench::start(host, Settings { on_engine_loss: "hold", ..long_lease() });
        let outcomes: Vec<_> = HELD.iter().map(|fault| bench.run(fault, QUIET)).collect();
        bench.assert_good(&outcomes);
        // Without a promise they would have been silent for all that time, but for the lease.
        let silent = outcomes[1].silence;
        assert!(silent < HOLD, "silent for {silent:?}");
    });
}

#[test]
fn a_node_that_gets_another_name_hands_its_addresses_over_and_must_not_get_the_name_of_another() {
    isolated_cluster(|host| run(host, 7));
}

#[test]
fn keys_of_other_programs_and_configurations_that_differ_move_nothing_that_need_not_move() {
    isolated_cluster(|host| {
        let mut bench = Bench::start(host, Settings::default());
        let mut outcomes: Vec<_> = CLUSTERS[8].iter().map(|name| bench.run(fault(name), QUIET)).collect();
        // The others wait for the lease that the node declares, which is longer than theirs.
        outcomes.push(bench.run(fault("coordinator-killed"), QUIET));
        undeclare(&mut bench, addresses()[0]);
        bench.assert_good(&outcomes);
    });
}

/// Takes an address out of the configuration of the node that has it: that address moves, and no other.
fn undeclare(bench: &mut Bench, address: IpAddr) {
    let holders = |bench: &Bench| addresses().iter().map(|one| bench.holder(*one)).collect::<Vec<_>>();
    let (victim, mut before) = (bench.holder(address), holders(bench));
    let host = &mut bench.cluster.hosts[victim];
    let is_listener = |line: &&str| line.trim().starts_with(&format!("Listen \"{address}:25\""));
    let text: Vec<&str> = host.text.lines().filter(|line| !is_listener(line)).collect();
    let text = text.join("\n");
    assert!(text.len() + 20 < host.text.len(), "the configuration declares {address}");
    host.configure(&text);
    let next = eventually("another node", || Some(bench.holder(address)).filter(|next| *next != victim));
    bench.await_answers();
    before[0] = next;
    assert_eq!(holders(bench), before);
}

#[test]
fn every_fault_is_in_one_test() {
    let mut tested = CLUSTERS.concat();
    tested.sort_unstable();
    let mut all: Vec<&str> = FAULTS.iter().map(|fault| fault.name).collect();
    all.sort_unstable();
    assert_eq!(tested, all);
}

/// Shows that the referee notices coordinators that break their promise. How long two nodes answer depends on when the last beat
/// came: with the default lease, for about 1.4 s.
#[test]
fn the_referee_notices_coordinators_that_wait_for_half_of_the_lease_only() {
    isolated_cluster(|host| {
        let mut bench = Bench::start(host, Settings { impatient: true, lease: 6, ..Settings::default() });
        bench.run(fault("partition"), Duration::ZERO);
        let violations = bench.judge();
        println!("{violations:#?}");
        assert!(violations.iter().any(|text| text.contains("answered at")), "{violations:?}");
    });
}

/// A connection to the first floating address, and the name of the node that serves it.
fn connect() -> Option<(BufReader<TcpStream>, String)> {
    let at = SocketAddr::new(addresses()[0], 25);
    let stream = lan::in_host(CLIENT, || TcpStream::connect_timeout(&at, Duration::from_millis(500))).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let name = line.trim().strip_prefix("220 ")?.to_owned();
    Some((reader, name))
}

#[test]
fn a_client_is_disconnected_and_reconnects_to_the_next_node() {
    // A node that has lost the engine has 1 s to reset its connections, so no other test may keep it from that.
    exclusive(|host| {
        let mut bench = Bench::start(host, Settings { lease: 6, ..Settings::default() });
        // The leases have been renewed when the node loses the engine: it removes its addresses before they end.
        for name in ["coordinator-terminated", "check-failed", "engine-unreachable"] {
            let (mut client, first) = connect().expect("a greeting");
            assert_eq!(NODES[bench.holder(addresses()[0])], first);
            let begin = Instant::now();
            let reader = std::thread::spawn(move || {
                let error = client.read(&mut [0]).expect_err("a reset");
                let disconnected = begin.elapsed();
                let (_, next) = loop {
                    if let Some(connected) = connect() {
                        break connected;
                    }
                    assert!(begin.elapsed() < TIMEOUT, "no node serves the client");
                };
                (error, disconnected, begin.elapsed(), next)
            });
            let outcome = bench.run(fault(name), QUIET);
            let (error, disconnected, connected, next) = reader.join().unwrap();
            println!("{name}: disconnected after {disconnected:?}, connected after {connected:?}");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            assert_ne!(next, first);
            bench.assert_good(&[outcome]);
        }
    });
}
