//! `portreeve cluster check` with real members: what it finds, and how its exit code tells it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use portreeve_coordinator::core::check::{Engine as Found, LeaseTime};
use portreeve_coordinator::core::record::Key;
use portreeve_coordinator::core::txn::{Operation, Txn};
use portreeve_coordinator::engine::Engine as _;
use portreeve_coordinator::engine::etcd::{Etcd, Settings};
use portreeve_tests::certificates::Authority;
use portreeve_tests::cluster::host::{COORDINATOR, control_socket};
use portreeve_tests::cluster::{Cluster, NODES, Settings as ClusterSettings};
use portreeve_tests::etcd::{self, Member};
use portreeve_tests::{Host, binaries, eventually, isolated, isolated_cluster};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

/// The exit code of a check on a node, and its result.
fn check(host: &Host, node: usize, options: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(host.binary(binaries::CLIENT));
    command.args(["--json", "cluster", "--coordinator"]).arg(control_socket(node)).arg("check").args(options);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

/// The checks with that name: the subject, the verdict and the value of each.
fn named(value: &Value, name: &str) -> Vec<(String, String, String)> {
    let all = value["checks"].as_array().unwrap_or_else(|| panic!("{value}"));
    let text = |check: &Value, member: &str| check[member].as_str().unwrap().to_owned();
    let named = all.iter().filter(|check| check["check"] == name);
    named.map(|check| (text(check, "subject"), text(check, "verdict"), text(check, "value"))).collect()
}

/// The verdicts of the checks with that name.
fn verdicts(value: &Value, name: &str) -> Vec<String> {
    named(value, name).into_iter().map(|(_, verdict, _)| verdict).collect()
}

/// Checks until the result is as expected.
#[track_caller]
fn await_check(host: &Host, what: &str, is_expected: impl Fn(&Value) -> bool) -> (Option<i32>, Value) {
    let mut shown = String::new();
    eventually(what, || {
        let (code, value) = check(host, 0, &[]);
        // Without one, the coordinator has just started.
        if value["checks"].is_array() && is_expected(&value) {
            return Some((code, value));
        }
        let text = format!("{what}: {value}");
        if text != shown {
            eprintln!("{text}");
            shown = text;
        }
        None
    })
}

/// Checks until the verdicts of one check are these.
#[track_caller]
fn await_verdicts(host: &Host, name: &str, expected: &[&str]) -> (Option<i32>, Value) {
    await_check(host, name, |value| verdicts(value, name) == expected)
}

/// The exit code for a result.
fn expected_code(value: &Value, is_strict: bool) -> Option<i32> {
    let is_bad = value["verdict"] == "failure" || is_strict && value["verdict"] == "warning";
    Some(i32::from(is_bad))
}

#[test]
fn a_check_finds_what_is_wrong_with_a_cluster() {
    isolated_cluster(|host| {
        let mut cluster = Cluster::prepare(host, ClusterSettings { lease: 6, ..ClusterSettings::default() });
        let tls = cluster.hosts[0].member.settings.tls.clone().unwrap();
        let (_, issued) = tls.etcdctl;
        chown(&issued.key, Some(COORDINATOR), Some(COORDINATOR)).unwrap();
        fs::set_permissions(&issued.key, Permissions::from_mode(0o600)).unwrap();
        cluster.start_coordinators();
        await_verdicts(host, "fence", &["ok"; 3]);
        // On a machine under load, they may be slow.
        await_check(host, "a beat", |value| verdicts(value, "beats") != ["unknown"]);
        let (code, value) = await_verdicts(host, "status", &["ok"]);
        for (name, expected) in [
            ("engine-endpoint", 3),
            ("engine-endpoints", 1),
            ("engine-members", 1),
            ("engine-leader", 1),
            ("engine-space", 3),
            ("engine-alarms", 3),
            // Members with an election timeout of 500 ms.
            ("engine-election", 3),
            ("certificate", 2),
            ("key", 1),
            ("permissions", 1),
            ("addresses", 1),
            ("lease", 1),
            ("failback", 1),
            ("on-engine-loss", 1),
            ("coordinator-version", 1),
        ] {
            assert_eq!(verdicts(&value, name), vec!["ok"; expected], "{name}: {value:#}");
        }
        assert_eq!(named(&value, "failback")[0].2, "manual on 3");
        // Debian's release is old, and more so each year.
        let versions = named(&value, "engine-version");
        assert!(
            versions.len() == 3 && versions.iter().all(|(.., value)| value.starts_with("3.")),
            "{versions:?}"
        );
        assert_eq!(code, expected_code(&value, false));
        let (code, value) = check(host, 0, &["--strict"]);
        assert_eq!(code, expected_code(&value, true));

        cluster.hosts[2].member.kill();
        let (code, value) = await_verdicts(host, "engine-endpoint", &["ok", "ok", "failure"]);
        assert_eq!((code, &value["verdict"]), (Some(1), &"failure".into()));
        cluster.hosts[2].member.restart();
        await_verdicts(host, "engine-endpoint", &["ok"; 3]);

        fs::set_permissions(&issued.key, Permissions::from_mode(0o604)).unwrap();
        await_verdicts(host, "permissions", &["failure"]);
        fs::set_permissions(&issued.key, Permissions::from_mode(0o600)).unwrap();
        // The coordinator's connections stay as they are.
        let other = Authority::create(&host.path(""), "other");
        let expired = other.issue_expired("former", &[]);
        fs::copy(&expired.certificate, &issued.certificate).unwrap();
        let (code, value) = await_verdicts(host, "key", &["failure"]);
        assert_eq!(named(&value, "key")[0].2, "the key of another certificate");
        let certificates = named(&value, "certificate");
        assert_eq!((certificates[0].1.as_str(), certificates[1].1.as_str()), ("ok", "failure"), "{value:#}");
        assert_eq!((code, certificates[1].2.as_str()), (Some(1), "ended at 2001-02-03T00:00:00Z"));
        assert_eq!(NODES.len(), named(&value, "fence").len());
    });
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn engine(members: &[Member]) -> Etcd {
    let endpoints = members.iter().map(|member| member.settings.client.clone()).collect();
    Etcd::new(Settings { endpoints, group: "g".to_owned(), ..Settings::default() }).unwrap()
}

/// Inspects until every endpoint has answered everything.
fn inspect(runtime: &Runtime, etcd: &Etcd) -> Found {
    eventually("an inspection", || {
        let found = runtime.block_on(etcd.inspect());
        let is_whole = found.endpoints.iter().all(|endpoint| {
            endpoint.member.as_ref().is_ok_and(|member| member.problem.is_none() && member.election.is_some())
        });
        (is_whole && found.voters.is_some()).then_some(found)
    })
}

#[test]
fn a_member_shows_the_range_of_its_election_timeout() {
    isolated(|host| {
        for (heartbeat, election, seconds) in [(100, 500, 1), (0, 0, 2), (100, 3_000, 5), (500, 10_000, 15)] {
            let mut settings = etcd::loopback(1);
            settings[0].name = format!("m{election}");
            settings[0].cluster = etcd::initial_cluster(&settings);
            (settings[0].heartbeat_ms, settings[0].election_ms) = (heartbeat, election);
            let members = etcd::start_all(host, settings);
            let found = inspect(&runtime(), &engine(&members));
            let member = found.endpoints[0].member.as_ref().unwrap();
            let third = |lease: u64| Duration::from_secs(lease) * 2 / 3;
            let expected = LeaseTime { over: third(seconds - 1), up_to: third(seconds) };
            assert_eq!(member.election, Some(expected), "{election}");
            let real = Duration::from_millis(if election == 0 { 1_000 } else { election.into() });
            assert!(expected.over < real && real <= expected.up_to, "{election}");
            assert_eq!(members[0].etcdctl(&["lease", "list"]).trim(), "found 0 leases");
            assert_eq!(found.voters.unwrap()[0].1, format!("m{election}"));
        }
    });
}

#[test]
fn a_member_whose_database_is_full_grants_no_lease_and_reports_an_alarm() {
    isolated(|host| {
        let mut settings = etcd::loopback(1);
        settings[0].quota = 1 << 20;
        let members = etcd::start_all(host, settings);
        let (runtime, etcd) = (runtime(), engine(&members));
        inspect(&runtime, &etcd);
        let text = "x".repeat(100_000);
        let put = || Txn {
            success: vec![Operation::Put(Key::Foreign("x".to_owned()), text.as_str().into())],
            ..Txn::default()
        };
        eventually("an alarm", || {
            // In the end it is refused.
            let _ = runtime.block_on(etcd.txn(put()));
            let found = runtime.block_on(etcd.inspect());
            let member = found.endpoints[0].member.as_ref().ok()?;
            let is_full = member.alarms.iter().any(|alarm| alarm.contains("NOSPACE"));
            (is_full && member.election.is_none() && member.size > 1 << 19).then_some(())
        });
    });
}

#[test]
fn a_user_with_a_limited_role_may_check() {
    isolated(|host| {
        let mut settings = etcd::loopback(1);
        settings[0].arguments = vec!["--bcrypt-cost=4".to_owned()];
        let members = etcd::start_all(host, settings);
        members[0].enable_auth("user", "g");
        let password: &Path = &host.file("password", "user\n");
        let etcd = Etcd::new(Settings {
            endpoints: vec![members[0].settings.client.clone()],
            user: "user".to_owned(),
            password_file: password.to_str().unwrap().to_owned(),
            group: "g".to_owned(),
            ..Settings::default()
        });
        let found = inspect(&runtime(), &etcd.unwrap());
        assert_eq!(found.voters.map(|voters| voters.len()), Some(1));
    });
}
