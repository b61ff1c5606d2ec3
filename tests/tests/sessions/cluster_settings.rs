//! The settings of the cluster, as a coordinator gets them from the broker.

use std::path::Path;
use std::process::Command;

use portreeve::{Channel, blocking};
use portreeve_protocol::cluster::{ClusterRequest, ClusterSettings, Failback, OnEngineLoss};
use portreeve_protocol::reload::Reload;
use portreeve_protocol::{EventCode, FaultCode};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::namespaces::run;
use portreeve_tests::reload::{reload, rows};
use portreeve_tests::{Broker, Peer, binaries, broker, explain, isolated, sample};

const COORDINATOR: u32 = 3;
const OTHER_USER: u32 = 2;

/// A configuration with this `cluster` scope, in which the coordinator may read the settings and another peer may not.
fn config(cluster: &str) -> String {
    let peers = "broker {
        peer 3 { allow = ( cluster subscribe ) }
        peer 2 { allow = ( status policy ) }
    }";
    format!("{}\n{peers}\ncluster {{ {cluster} }}\n", sample::control(r#"( "127.0.0.1:2525" )"#))
}

const CLUSTER: &str = r#"
    cluster_group = mail
    nodename = mx1
    lease = 3
    failback = manual
    engine {
        endpoints = ( "https://Etcd1.example.net" "https://[2001:db8::2]:2380" )
        ca = /etc/portreeve/ca.pem
        certificate = /etc/portreeve/mx1.pem
        key = /etc/portreeve/mx1.key
        user = portreeve
        password_file = /etc/portreeve/password
        compaction = off
    }
    check smtp { command = ( /usr/bin/check-smtp "--greeting" "mx 1" ) interval = 2 fall = 4 rise = 1 }
    check queue { command = /usr/bin/check-queue }
"#;

fn settings(peer: &mut Peer) -> ClusterSettings {
    peer.request(&ClusterRequest {}).unwrap().0
}

#[test]
fn a_permitted_peer_gets_all_settings_and_the_new_ones_after_a_reload() {
    isolated(|host| {
        let broker = Broker::start(host, &config(CLUSTER));
        let mut coordinator = Peer::of_user(COORDINATOR, COORDINATOR);
        let told = settings(&mut coordinator);
        assert_eq!((&*told.group, &*told.nodename), ("mail", "mx1"));
        assert_eq!((told.lease_ms, told.heartbeat_ms), (3_000, 500));
        assert_eq!((told.view_mature_ms, told.view_balance_ms, told.balance_set_size), (5_000, 10_000, 10));
        assert_eq!((told.failback, told.on_engine_loss), (Failback::Manual, OnEngineLoss::Release));
        let engine = told.engine.as_ref().unwrap();
        let endpoints: Vec<&str> = engine.endpoints.iter().map(|url| &**url).collect();
        assert_eq!(endpoints, ["https://etcd1.example.net:2379", "https://[2001:db8::2]:2380"]);
        let files = [&engine.ca, &engine.certificate, &engine.key, &engine.password_file];
        let names = ["ca.pem", "mx1.pem", "mx1.key", "password"];
        assert_eq!(files.map(ToString::to_string), names.map(|name| format!("/etc/portreeve/{name}")));
        assert_eq!((&*engine.user, engine.compaction), ("portreeve", false));
        let [smtp, queue] = &*told.checks else { panic!("{:?}", told.checks) };
        assert_eq!(
            smtp.command.iter().map(|word| &**word).collect::<Vec<_>>(),
            ["/usr/bin/check-smtp", "--greeting", "mx 1"]
        );
        assert_eq!((&*smtp.name, smtp.interval_ms, smtp.fall, smtp.rise), ("smtp", 2_000, 4, 1));
        assert_eq!((&*queue.name, queue.interval_ms, queue.fall, queue.rise), ("queue", 5_000, 3, 2));
        assert_eq!(settings(&mut broker.peer()), told);

        coordinator.subscribe(false);
        let changed = CLUSTER
            .replace("lease = 3", "lease = 12 on_engine_loss = hold peer_listen = \"192.0.2.1:7400\"")
            .replace("off", "on");
        let reloaded = reload(host, &broker, &config(&changed));
        let changes = [
            "cluster heartbeats_per_sec",
            "cluster lease",
            "cluster on_engine_loss",
            "cluster peer_listen",
            "engine compaction",
        ];
        assert_eq!(rows(&reloaded, "applied"), changes, "{reloaded:?}");
        assert_eq!(rows(&reloaded, "needs-restart"), [""; 0]);
        coordinator.await_event(EventCode::Reloaded);
        let told = settings(&mut coordinator);
        assert_eq!((told.lease_ms, told.heartbeat_ms), (12_000, 2_000));
        assert_eq!(
            (told.on_engine_loss, told.engine.as_ref().unwrap().compaction),
            (OnEngineLoss::Hold, true)
        );
        assert_eq!(&*told.peer_listen, "192.0.2.1:7400");

        // A refused configuration changes nothing, and is no event for this peer.
        broker::config(host, &config(&CLUSTER.replace("lease = 3", "lease = 3 heartbeats_per_sec = 0.5")));
        let fault = broker.peer().request(&Reload::default()).unwrap_err();
        assert_eq!(fault.code, FaultCode::Invalid);
        assert!(fault.message.contains("too few for a lease of 3 s"), "{fault}");
        assert_eq!(settings(&mut coordinator).lease_ms, 12_000);

        let reloaded = reload(host, &broker, &config("nodename = mx1"));
        assert!(rows(&reloaded, "applied").contains(&"engine endpoints"), "{reloaded:?}");
        coordinator.await_event(EventCode::Reloaded);
        let told = settings(&mut coordinator);
        let defaults = ClusterSettings {
            nodename: told.nodename.clone(),
            lease_ms: 6_000,
            heartbeat_ms: 1_000,
            view_mature_ms: 5_000,
            view_balance_ms: 10_000,
            balance_set_size: 10,
            ..ClusterSettings::default()
        };
        assert_eq!(told, defaults);
    });
}

#[test]
fn another_peer_is_denied_with_the_remedy() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(CLUSTER));
        let fault = Peer::of_user(OTHER_USER, OTHER_USER).request(&ClusterRequest {}).unwrap_err();
        assert_eq!(fault.code, FaultCode::Denied);
        assert_eq!(&*fault.message, "user 2 is not allowed to use the operation \"cluster\"");
        assert_eq!(&*fault.remedy, "add cluster to allow in a peer scope of user 2 or one of its groups");
        let text = format!("{fault:?}");
        assert!(!text.contains("etcd1") && !text.contains("mail"), "{text}");
    });
}

#[test]
fn the_command_and_the_blocking_client_show_the_settings() {
    isolated(|host| {
        let broker = Broker::start(host, &config(CLUSTER));
        let mut command = Command::new(host.binary(binaries::CLIENT));
        let shown = run(command.args(["--socket", SOCKET, "cluster", "settings"]), "portreeve");
        for text in
            ["cluster_group", "every 0.5 s", "https://[2001:db8::2]:2380", "/etc/portreeve/mx1.key", "queue"]
        {
            assert!(shown.contains(text), "{text}: {shown}");
        }
        let mut command = Command::new(host.binary(binaries::CLIENT));
        let value = run(command.args(["--socket", SOCKET, "cluster", "settings", "--json"]), "portreeve");
        let value: serde_json::Value = serde_json::from_str(&value).unwrap();
        assert_eq!((&value["lease_ms"], &value["failback"]), (&3_000.into(), &"manual".into()));
        assert_eq!(value["engine"]["endpoints"][0], "https://etcd1.example.net:2379");
        assert_eq!(value["checks"][0]["command"][2], "mx 1");
        let client = blocking::Client::open(Channel::connect(Path::new(SOCKET)).unwrap(), "test").unwrap();
        assert_eq!(client.cluster_settings().unwrap(), settings(&mut broker.peer()));
    });
}

#[test]
fn explain_shows_what_the_coordinator_is_told() {
    isolated(|host| {
        let path = broker::config(host, &config(CLUSTER));
        let arguments = ["explain", path.to_str().unwrap(), "--json"];
        let explained = &explain::json(&explain::run(host, &arguments))["coordinator"];
        assert_eq!((&explained["lease_ms"], &explained["heartbeat_ms"]), (&3_000.into(), &500.into()));
        assert_eq!(explained["files"][3], "/etc/portreeve/password");
        let output = explain::run(host, &arguments[..2]);
        let shown = String::from_utf8_lossy(&output.stdout);
        for line in [
            "coordinator of the cluster mail, on node mx1",
            "  lease         3 s, one heartbeat in 0.5 s",
            "  engine        https://etcd1.example.net:2379",
            "                compaction off, user portreeve",
            "  checks        smtp: /usr/bin/check-smtp --greeting mx 1, every 2 s, fall 4, rise 1",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line:?} is not in: {shown}");
        }
        let path = broker::config(host, &config("nodename = mx1"));
        let output = explain::run(host, &["explain", path.to_str().unwrap()]);
        assert!(!String::from_utf8_lossy(&output.stdout).contains("coordinator"), "{output:?}");
    });
}
