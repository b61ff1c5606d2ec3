//! `portreeve cluster` with a coordinator: its control socket answers from a node of a simulated cluster.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portreeve_coordinator::control::{self, Answer, Request, Response};
use portreeve_coordinator::core::check as checks;
use portreeve_coordinator::core::decide::Facts;
use portreeve_coordinator::core::news::Journal;
use portreeve_coordinator::core::record::{Key, Order, Value};
use portreeve_coordinator::core::report::{Endpoint, Surroundings, View};
use portreeve_coordinator::core::txn::NoReply;
use portreeve_coordinator::simulate::{Setup, Simulation};
use schema::check;
use serde_json::Value as Json;

mod schema;

/// A coordinator: node 0 of a simulated cluster. A quarter of a second passes with each request.
struct Coordinator {
    folder: tempfile::TempDir,
    cluster: Arc<Mutex<Cluster>>,
}

struct Cluster {
    simulation: Simulation,
    journal: Journal,
    followers: Vec<UnixStream>,
    engine_replies: bool,
    /// What a check finds.
    faults: Vec<checks::Fault>,
    files: checks::Files,
}

impl Coordinator {
    /// Starts a cluster of three nodes, and lets it come to rest.
    fn start(addresses: usize) -> Self {
        let mut simulation = Simulation::new(Setup { addresses, ..Setup::default() });
        (0..3).for_each(|node| simulation.start(node));
        simulation.node_mut(0).unwrap().collect_news();
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("control.sock")).unwrap();
        let (journal, followers) = (Journal::default(), Vec::new());
        let (faults, files) = (Vec::new(), checks::Files::default());
        let cluster = Cluster { simulation, journal, followers, engine_replies: true, faults, files };
        let cluster = Arc::new(Mutex::new(cluster));
        let coordinator = Coordinator { folder, cluster: Arc::clone(&cluster) };
        coordinator.pass(60);
        // It ends with the process.
        std::thread::spawn(move || listener.incoming().for_each(|stream| serve(&cluster, stream.unwrap())));
        coordinator
    }

    /// Lets something happen, and tells the followers.
    fn with(&self, act: impl FnOnce(&mut Simulation)) {
        let mut cluster = self.cluster.lock().unwrap();
        act(&mut cluster.simulation);
        cluster.publish();
    }

    fn pass(&self, seconds: u64) {
        (0..10 * seconds).for_each(|_| self.with(|cluster| cluster.run_for(Duration::from_millis(100))));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
        command.env_clear().env("PORTREEVE_COORDINATOR_SOCKET", self.folder.path().join("control.sock"));
        command.arg("cluster").args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        output(self.command(arguments))
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Json {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let (code, stdout, stderr) = self.run(&arguments);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
        let value = serde_json::from_str(&stdout).unwrap();
        let definition = match arguments[0] {
            "status" => "clusterStatus",
            "explain" => "clusterExplain",
            "plan" => "clusterPlan",
            "events" => "clusterEvents",
            "metrics" => "clusterMetrics",
            "check" => "clusterCheck",
            _ => "clusterOrder",
        };
        check(definition, &value);
        value
    }

    /// What the command prints on both streams; it must succeed.
    #[track_caller]
    fn text(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(arguments);
        assert_eq!(code, Some(0), "{stdout}{stderr}");
        stdout + &stderr
    }

    /// What the command prints on standard error when it fails with the exit code.
    #[track_caller]
    fn failure(&self, exit: i32, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(arguments);
        assert_eq!((code, stdout.as_str()), (Some(exit), ""), "{stderr}");
        stderr
    }
}

const ALERTS: &str = include_str!("../../../deploy/monitoring/alerts.yml");
const DASHBOARD: &str = include_str!("../../../deploy/monitoring/dashboard.json");

fn output(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn serve(cluster: &Mutex<Cluster>, stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let request: Request = serde_json::from_str(&line).unwrap();
    let follow = request == Request::Events { follow: true };
    let mut cluster = cluster.lock().unwrap();
    let response = cluster.answer(request);
    let line = serde_json::to_string(&response).unwrap() + "\n";
    stream.get_mut().write_all(line.as_bytes()).unwrap();
    if follow {
        cluster.followers.push(stream.into_inner());
    }
}

impl Cluster {
    /// Three members without a fault, unless the test has set some.
    fn engine(&self) -> checks::Engine {
        let endpoint = |id: u64| checks::Endpoint {
            url: format!("https://10.0.0.10{id}:2379"),
            member: match id {
                2 if !self.engine_replies => Err("connection refused".to_owned()),
                _ => Ok(checks::Member {
                    id,
                    version: "3.5.30".to_owned(),
                    faults: Some(self.faults.clone()),
                    leader: Some(1),
                    size: 20 << 20,
                    ..checks::Member::default()
                }),
            },
        };
        let voters = (1..=3).map(|id| (id, format!("m{id}"))).collect();
        checks::Engine {
            endpoints: (1..=3).map(endpoint).collect(),
            voters: Some(voters),
            default_quota: 2 << 30,
        }
    }

    fn publish(&mut self) {
        let now = self.simulation.node_now(0).unwrap().1;
        let news = self.simulation.node_mut(0).unwrap().take_news();
        for event in self.journal.record(now, 1_732_874_400_000, news) {
            let line = serde_json::to_string(&Response::Events(vec![event])).unwrap() + "\n";
            self.followers.iter_mut().for_each(|stream| stream.write_all(line.as_bytes()).unwrap());
        }
    }

    fn answer(&mut self, request: Request) -> Response {
        self.simulation.run_for(Duration::from_millis(250));
        self.publish();
        let endpoint = |url: &str, is_up, state: &str| Endpoint {
            url: url.to_owned(),
            is_up,
            state: state.to_owned(),
            version: "3.5.30".to_owned(),
        };
        let around = Surroundings {
            group: "mail".to_owned(),
            is_fenced: Some(true),
            endpoints: vec![
                endpoint("https://10.0.0.101:2379", true, ""),
                endpoint("https://10.0.0.102:2379", false, "connection refused"),
            ],
            requests: (120, 3),
        };
        let (node, now) = self.simulation.node_now(0).unwrap();
        let view = View { node, now, journal: &self.journal, around: &around };
        match control::answer(view, 1_732_874_400_000, "root", request) {
            Answer::Now(response) => response,
            Answer::Check(inspection) => {
                let (engine, files) = (self.engine(), self.files.clone());
                Response::Checks(Box::new(inspection.judge(&engine, &files, 1_732_874_400)))
            }
            Answer::Txn(_, pending) if !self.engine_replies => pending.replied(Err(NoReply)),
            Answer::Txn(txn, pending) => {
                let reply = self.simulation.txn(&txn);
                self.simulation.run_for(Duration::from_millis(250));
                self.publish();
                pending.replied(Ok(reply))
            }
        }
    }
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn the_status_shows_nodes_addresses_and_problems() {
    let coordinator = Coordinator::start(4);
    let page = coordinator.text(&["status"]);
    assert_has(
        &page,
        &[
            "group mail, node n0: ready, in session for 1 min",
            "(lease 6 s, beat every 1 s, evicted 7 s after the last one)",
            "broker: connected, ends addresses with the packet filter",
            "warning: the endpoint https://10.0.0.102:2379 of the engine does not reply: connection refused. Check",
            "\nn2    ready  ",
            "\n10.0.0.4  n",
        ],
    );
    assert_eq!(page.matches("warning:").count(), 1, "{page}");

    let value = coordinator.json(&["status"]);
    let of = |value: &Json, row: &str, member: &str| value.pointer(row).unwrap()[member].clone();
    assert_eq!(value["group"], "mail");
    assert_eq!(of(&value, "/node", "membership"), "member");
    assert_eq!(of(&value, "/node", "lease_ms"), 6_000);
    assert!(of(&value, "/node", "lease_left_ms").as_u64().unwrap() <= 6_000);
    assert_eq!(of(&value, "/addresses/3", "address"), "10.0.0.4");
    assert_eq!(of(&value, "/addresses/3", "owner"), of(&value, "/addresses/3", "belongs"));
    assert!(of(&value, "/addresses/3", "since_ms").as_u64().unwrap() > 20_000);
    assert_eq!(value["nodes"].as_array().unwrap().len(), 3);
    let counts = value["nodes"].as_array().unwrap().iter().map(|node| node["addresses"].as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), 4);

    coordinator.with(|cluster| cluster.kill(1));
    coordinator.pass(4);
    assert_has(
        &coordinator.text(&["status"]),
        &["warning: node n1 has shown no life for 4.", "this node evicts it in 2.", "s ago, evicted in 2"],
    );
    coordinator
        .with(|cluster| cluster.facts(2, Facts { sick: Some("check smtp".to_owned()), ..Facts::default() }));
    coordinator.pass(10);
    let page = coordinator.text(&["status"]);
    assert_has(
        &page,
        &["warning: node n2 is sick: check smtp. Correct that on n2", "\nn1    gone ", "\nn2    sick "],
    );

    coordinator.with(|cluster| cluster.engine(false));
    coordinator.pass(20);
    assert_has(
        &coordinator.text(&["status"]),
        &[
            "warning: the engine has not replied for 2",
            "warning: the lease of this node has ended: it has no address until a beat succeeds",
            "not added",
        ],
    );
}

#[test]
fn an_explanation_has_the_owner_the_reasons_and_what_happens_next() {
    let coordinator = Coordinator::start(3);
    let owner_of = |address: &str| -> String {
        let value = coordinator.json(&["explain", address]);
        assert_eq!(value["owner"], value["belongs"]);
        value["owner"].as_str().unwrap().to_owned()
    };
    let addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
    let with_owner = |name: &str| *addresses.iter().find(|address| owner_of(address) == name).unwrap();
    let (own, other) = (with_owner("n0"), with_owner("n1"));
    assert_has(
        &coordinator.text(&["explain", own]),
        &[
            "n0 (held)",
            " ago, revision ",
            "nothing: this node keeps it",
            "n0: stays where it is",
            "\nn1    1          yes",
        ],
    );
    coordinator.with(|cluster| cluster.kill(1));
    coordinator.pass(4);
    assert_has(
        &coordinator.text(&["explain", other]),
        &["n1 (held)", "in 2", "this node evicts n1, which has shown no life for 4.", "then n"],
    );
    coordinator.pass(6);
    assert_ne!(owner_of(other), "n1");

    assert_has(
        &coordinator.text(&["move", own, "n2", "--for", "10m"]),
        &["is pinned to n2 until 2024-11-29T10:10:00Z"],
    );
    coordinator.pass(2);
    let page = coordinator.text(&["explain", own]);
    assert_has(&page, &["n2 (held)", "n2: pinned by an operator", "in 9 min 5", "the pin to n2 ends"]);

    // The add is refused here, and everywhere else the address is refused too.
    let address: IpAddr = own.parse().unwrap();
    coordinator.with(|cluster| (0..3).for_each(|node| cluster.refuse(node, Some(address))));
    coordinator.text(&["move", own, "n0"]);
    coordinator.pass(4);
    let page = coordinator.text(&["explain", own]);
    assert_has(&page, &["no: its broker refused to add the address"]);
    assert_has(&coordinator.text(&["status"]), &["warning: the broker of n0 refuses to add"]);
    let stderr = coordinator.failure(1, &["explain", "10.0.0.99"]);
    assert_has(&stderr, &["no node declares the address 10.0.0.99. `portreeve cluster status` lists"]);
}

#[test]
fn a_plan_shows_the_moves_now_and_without_a_node() {
    let coordinator = Coordinator::start(6);
    assert_has(&coordinator.text(&["plan"]), &["no address would move\n", "NODE  ADDRESSES  AFTER"]);
    let page = coordinator.text(&["plan", "--without", "n1"]);
    assert_has(&page, &["  n1    n", "at once"]);
    let value = coordinator.json(&["plan", "--without", "n1"]);
    let moves = value["moves"].as_array().unwrap();
    assert!(
        moves.iter().all(|one| one["from"] == "n1" && one["urgent"] == true && one["to"] != "n1"),
        "{value}"
    );
    assert_eq!(value["nodes"][1]["before"], moves.len());
    assert_eq!((&value["nodes"][1]["node"], &value["nodes"][1]["after"]), (&"n1".into(), &0.into()));
    coordinator.text(&["freeze"]);
    assert_has(&coordinator.text(&["plan"]), &["voluntary moves are not allowed"]);
    assert_has(&coordinator.failure(1, &["plan", "--without", "x"]), &["The nodes are n0, n1, n2."]);
}

#[test]
fn a_check_tells_its_result_by_its_exit_code() {
    let coordinator = Coordinator::start(4);
    coordinator.with(|cluster| (0..3).for_each(|node| cluster.facts(node, Facts::default())));
    let page = coordinator.text(&["check"]);
    assert_has(
        &page,
        &[
            "CHECK                OF  ",
            "\nengine-endpoint      https://10.0.0.103:2379  ok       answers",
            "\nengine-members                                ok       3 ",
            "\nfence                n1 ",
            "\nunknown: engine-election of https://10.0.0.101:2379: not known. The member grants no lease",
            "\ngroup mail, node n0: ",
            " 0 warning, 0 failure\n",
        ],
    );
    let value = coordinator.json(&["check"]);
    assert_eq!((&value["verdict"], &value["node"]), (&"unknown".into(), &"n0".into()));
    coordinator.json(&["check", "--strict"]);

    let fault = |is_severe| checks::Fault {
        text: "loses data".to_owned(),
        is_severe,
        fixed_in: Some("3.5.31".to_owned()),
    };
    coordinator.cluster.lock().unwrap().faults = vec![fault(false)];
    assert_has(
        &coordinator.text(&["check"]),
        &[
            "\nwarning: engine-version of https://10.0.0.101:2379: 3.5.30: loses data (corrected in 3.5.31). Upgrade",
        ],
    );
    let (code, stdout, stderr) = coordinator.run(&["check", "--strict"]);
    assert_eq!((code, stderr.as_str()), (Some(1), ""), "{stdout}");

    coordinator.cluster.lock().unwrap().engine_replies = false;
    let (code, stdout, stderr) = coordinator.run(&["check", "--json"]);
    assert_eq!((code, stderr.as_str()), (Some(1), ""), "{stdout}");
    let value: Json = serde_json::from_str(&stdout).unwrap();
    check("clusterCheck", &value);
    assert_eq!(value["verdict"], "failure");
    let failures = value["checks"].as_array().unwrap().iter().filter(|one| one["verdict"] == "failure");
    let failures: Vec<&Json> = failures.map(|one| &one["subject"]).collect();
    assert_eq!(failures, ["https://10.0.0.102:2379"]);

    // Whoever issued a certificate wrote the name.
    let evil = checks::Certificate { name: "e\u{1b}[2J".to_owned(), from: 0, until: 1 };
    coordinator.cluster.lock().unwrap().files.certificates = vec![("ca /ca.pem".to_owned(), Ok(vec![evil]))];
    let (code, stdout, _) = coordinator.run(&["check"]);
    assert_eq!(code, Some(1));
    assert_has(&stdout, &[r"failure: certificate of ca /ca.pem: e\u{1b}[2J: ended at 1970-01-01T00:00:01Z."]);
    assert!(!stdout.contains('\u{1b}'));
}

#[test]
fn orders_say_what_they_change_and_may_be_repeated() {
    let coordinator = Coordinator::start(4);
    assert_eq!(coordinator.text(&["drain", "n2", "--why", "new disk"]), "n2 is drained\n");
    assert_eq!(
        coordinator.text(&["drain", "n2"]),
        "n2 is already drained by root since 2024-11-29T10:00:00Z: new disk\n"
    );
    assert_eq!(coordinator.json(&["drain", "n2"])["changed"], false);
    assert_has(&coordinator.text(&["status"]), &["drained by root (new disk)"]);
    assert_eq!(coordinator.text(&["undrain", "n2"]), "n2 is not drained\n");
    assert_eq!(coordinator.text(&["undrain", "n2"]), "n2 is not drained\n");

    assert_eq!(
        coordinator.text(&["freeze", "--why", "test"]),
        "voluntary moves are stopped; failover still works\n"
    );
    assert_has(&coordinator.text(&["freeze"]), &["voluntary moves are already stopped by root since"]);
    assert_has(
        &coordinator.text(&["status"]),
        &["warning: voluntary moves are stopped by root since 2024", ": test."],
    );
    assert_eq!(coordinator.json(&["thaw"])["changed"], true);
    assert_eq!(coordinator.json(&["thaw"])["changed"], false);

    assert_eq!(coordinator.text(&["move", "10.0.0.1", "n1"]), "10.0.0.1 is pinned to n1\n");
    assert_eq!(coordinator.text(&["move", "10.0.0.1", "n1"]), "10.0.0.1 is already pinned to n1 by root\n");
    assert_eq!(coordinator.text(&["unpin", "10.0.0.1"]), "10.0.0.1 is not pinned\n");
    for arguments in
        [&["move", "10.0.0.99", "n1"][..], &["move", "10.0.0.1", "n9"], &["drain", "n9"], &["evict", "n9"]]
    {
        coordinator.failure(1, arguments);
    }

    // What cannot be is a warning, not a failure.
    coordinator.with(|cluster| cluster.kill(1));
    coordinator.pass(10);
    assert_has(
        &coordinator.text(&["move", "10.0.0.1", "n1"]),
        &["warning: n1 cannot hold 10.0.0.1 now: not in the cluster"],
    );
    assert_has(&coordinator.text(&["status"]), &["warning: 10.0.0.1 is pinned to n1, which cannot hold it"]);
    coordinator.text(&["drain", "n2"]);
    assert_has(
        &coordinator.text(&["drain", "n0"]),
        &["warning: no other node can hold 4 addresses, so n0 keeps them"],
    );
    assert_has(&coordinator.text(&["status"]), &["warning: the drained node n0 keeps "]);
    assert_has(
        &coordinator.text(&["drain", "n0", "--release"]),
        &["warning: no other node can hold", "so nobody has them"],
    );

    coordinator.cluster.lock().unwrap().engine_replies = false;
    let stderr = coordinator.failure(69, &["freeze"]);
    assert_has(
        &stderr,
        &["the engine did not reply to the order to stop voluntary moves: it may still perform it"],
    );
}

#[test]
fn an_order_waits_for_its_effect_and_fails_without_it() {
    let coordinator = Coordinator::start(4);
    assert_eq!(coordinator.text(&["move", "10.0.0.1", "n1", "--wait"]), "10.0.0.1 is pinned to n1\n");
    assert_eq!(coordinator.json(&["explain", "10.0.0.1"])["owner"], "n1");
    coordinator.text(&["drain", "n1", "--wait=30"]);
    assert_eq!(coordinator.json(&["status"])["nodes"][1]["addresses"], 0);
    let stderr = coordinator.failure(1, &["move", "10.0.0.1", "n1", "--for", "1h", "--wait=1"]);
    assert_has(&stderr, &["the order is in force, but 10.0.0.1 is not on n1 after 1 s"]);
}

#[test]
fn an_eviction_needs_a_confirmation_and_a_host_that_shows_no_life() {
    let coordinator = Coordinator::start(3);
    assert_has(&coordinator.failure(1, &["evict", "n1"]), &["two hosts answer for them", "--powered-off"]);
    let stderr = coordinator.failure(1, &["evict", "n1", "--powered-off"]);
    assert_has(&stderr, &["n1 showed life ", "so its host is not powered off"]);
    assert_has(&coordinator.failure(1, &["evict", "n0", "--powered-off"]), &["this node itself"]);
    coordinator.with(|cluster| cluster.kill(1));
    coordinator.pass(4);
    assert_has(&coordinator.text(&["evict", "n1", "--powered-off"]), &["n1 is evicted"]);
    assert_eq!(coordinator.text(&["evict", "n1", "--powered-off"]), "n1 is not in the cluster\n");
    coordinator.pass(1);
    let value = coordinator.json(&["status"]);
    assert!(
        value["addresses"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row["owner"] != "n1" && !row["owner"].is_null())
    );
}

#[test]
fn shells_complete_nodes_and_addresses() {
    let coordinator = Coordinator::start(2);
    coordinator
        .with(|cluster| cluster.order(Key::Drain("e\u{1b}".into()), Some(&Value::Order(Order::default()))));
    let complete = |words: &[&str]| -> Vec<String> {
        let mut command = coordinator.command(&[]);
        command.env("PORTREEVE_COMPLETE", "bash").env("_CLAP_IFS", "\n");
        command.env("_CLAP_COMPLETE_INDEX", (words.len() + 1).to_string());
        let mut asked = Command::new(command.get_program());
        let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        asked.env_clear().envs(variables).args(["--", "portreeve", "cluster"]).args(words);
        let (code, stdout, stderr) = output(asked);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        stdout.lines().filter(|line| !line.starts_with('-')).map(str::to_owned).collect()
    };
    let nodes = ["n0", "n1", "n2"];
    for words in [
        &["drain", ""][..],
        &["undrain", "n"],
        &["evict", ""],
        &["move", "10.0.0.1", ""],
        &["plan", "--without", ""],
    ] {
        assert_eq!(complete(words), nodes, "{words:?}");
    }
    for words in [&["explain", ""][..], &["unpin", "10"], &["move", ""]] {
        assert_eq!(complete(words), ["10.0.0.1", "10.0.0.2"], "{words:?}");
    }
    assert_eq!(complete(&["drain", "--coordinator", "/nonexistent", ""]), Vec::<String>::new());
}

#[test]
fn events_are_remembered_and_followed() {
    let coordinator = Coordinator::start(3);
    let page = coordinator.text(&["events"]);
    assert_has(&page, &["session-began", "address-taken"]);
    assert!(coordinator.json(&["events"])["events"].as_array().unwrap().len() > 5);
    let mut follower = coordinator.command(&["events", "--follow", "--json"]);
    let mut follower = follower.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = |name: &str| -> Json {
        loop {
            let event: Json = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            check("clusterEvent", &event);
            if event["event"] == name {
                return event;
            }
        }
    };
    next("session-began");
    // All that is remembered was sent, so it follows.
    coordinator.with(|cluster| cluster.kill(1));
    while coordinator.cluster.lock().unwrap().followers.is_empty() {
        std::thread::yield_now();
    }
    coordinator.pass(10);
    let event = next("node-evicted");
    assert_eq!((&event["node"], &event["time_ms"]), (&"n1".into(), &1_732_874_400_000_u64.into()));
    let event = next("address-taken");
    assert_eq!(
        (&event["from"], &event["detail"].as_str().unwrap()[..28]),
        (&"n1".into(), "the session of n1 had ended;")
    );
    coordinator.text(&["drain", "n2", "--why", "new disk"]);
    let event = next("drained");
    assert_eq!((&event["node"], &event["detail"]), (&"n2".into(), &"by root: new disk".into()));
    assert_eq!(next("address-granted")["from"], "n2");
    coordinator.text(&["undrain", "n2"]);
    next("undrained");
    coordinator.text(&["move", "10.0.0.1", "n2", "--for", "10m"]);
    assert_eq!(next("pinned")["detail"], "by root until 2024-11-29T10:10:00Z");
    coordinator.with(|cluster| cluster.engine(false));
    coordinator.pass(20);
    next("engine-lost");
    next("withdrawn");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn text_of_other_hosts_is_escaped() {
    const EVIL: &str = "e\u{1b}[2J\n\u{202e}";
    let coordinator = Coordinator::start(1);
    coordinator.with(|cluster| {
        let order = Order { by: EVIL.to_owned(), why: EVIL.to_owned(), ..Order::default() };
        cluster.order(Key::Drain(EVIL.into()), Some(&Value::Order(order.clone())));
        cluster.order(Key::Freeze, Some(&Value::Order(order)));
        cluster.order(Key::Foreign(EVIL.to_owned()), Some(&Value::Order(Order::default())));
        cluster.facts(1, Facts { sick: Some(EVIL.to_owned()), ..Facts::default() });
    });
    coordinator.pass(5);
    for arguments in
        [&["status"][..], &["events"], &["explain", "10.0.0.1"], &["status", "--json"], &["metrics"]]
    {
        let text = coordinator.text(arguments);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    }
    let escaped = r"e\u{1b}[2J\n\u{202e}";
    assert_has(
        &coordinator.text(&["status"]),
        &[
            &format!("warning: another program wrote keys under /portreeve/mail/: {escaped}."),
            &format!("warning: voluntary moves are stopped by {escaped}: {escaped}."),
            &format!("warning: {escaped} is drained, but no such node was ever in the cluster."),
            &format!("warning: node n1 is sick: {escaped}."),
        ],
    );
    assert_eq!(coordinator.json(&["status"])["frozen"]["by"], EVIL);
}

#[test]
fn metrics_are_printed_and_served() {
    let coordinator = Coordinator::start(5);
    let page = coordinator.text(&["metrics"]);
    assert_has(
        &page,
        &[
            "\nportreeve_cluster_up 1\n",
            "\nportreeve_cluster_info{group=\"mail\",node=\"n0\",version=\"",
            "\nportreeve_cluster_member 1\n",
            "\nportreeve_cluster_ready 1\n",
            "\nportreeve_cluster_fenced 1\n",
            "\nportreeve_cluster_lease_seconds 6.000\n",
            "\nportreeve_cluster_lease_left_seconds 5.",
            "\nportreeve_cluster_nodes{state=\"ready\"} 3\n",
            "\nportreeve_cluster_addresses 5\n",
            "\nportreeve_cluster_addresses_unowned 0\n",
            "\nportreeve_cluster_engine_endpoint_up{endpoint=\"https://10.0.0.102:2379\"} 0\n",
            "\nportreeve_cluster_engine_requests_failed_total 3\n",
            "\nportreeve_cluster_problems{code=\"endpoint-down\"} 1\n",
            "\nportreeve_cluster_beat_p99_seconds 0.00",
        ],
    );
    assert_eq!(coordinator.json(&["metrics"])["addresses"], 5);
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let families: BTreeSet<&str> = families.collect();
    let names = |text: &'static str| -> BTreeSet<&str> {
        let words = text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
        words.filter(|word| word.starts_with("portreeve_cluster_")).collect()
    };
    let alerted = names(ALERTS);
    assert!(alerted.len() > 5 && alerted.is_subset(&families), "{alerted:?} of {families:?}");
    assert_eq!(names(DASHBOARD), families, "in the dashboard, and on the page");

    let mut server = coordinator.command(&["metrics", "--listen", "127.0.0.1:0"]);
    let mut server = server.stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_has(&text, &["HTTP/1.1 200", "\nportreeve_cluster_up 1\n", "\nportreeve_cluster_addresses 5\n"]);
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn without_a_coordinator_the_cause_and_the_remedy_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
        command.env_clear().args(["--timeout", "1", "cluster", "--coordinator"]).arg(&socket);
        output({
            command.args(arguments);
            command
        })
    };
    let (code, _, stderr) = run(&["status"]);
    assert_eq!(code, Some(69));
    assert_has(
        &stderr,
        &["No such file or directory", "Start portreeve-coordinator, or name its control socket"],
    );

    let listener = UnixListener::bind(&socket).unwrap();
    let reply = |reply: &'static [u8]| {
        let listener = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
            stream.write_all(reply).unwrap();
        })
    };
    let served = reply(b"220 mail ESMTP\x1b[2J\r\n");
    let (code, _, stderr) = run(&["status"]);
    assert_eq!(code, Some(76), "{stderr}");
    assert_has(&stderr, &["is not a coordinator of this version"]);
    assert!(!stderr.contains('\u{1b}'));
    served.join().unwrap();
    let served = reply(b"");
    assert_eq!(run(&["freeze"]).0, Some(69));
    served.join().unwrap();
    let served = reply(
        br#"{"error":{"code":"no-permission","message":"only root may","remedy":"Repeat the command as root."}}"#,
    );
    let (code, stdout, _) = run(&["freeze", "--json"]);
    let value: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &value["error"]["code"]), (Some(77), &"no-permission".into()));
    served.join().unwrap();
    // Nobody replies.
    let (code, _, stderr) = run(&["status"]);
    assert_eq!(code, Some(69), "{stderr}");
    assert_has(&stderr, &["timed out"]);
}
