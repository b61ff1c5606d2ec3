//! Every output of `portreeve --json` is as the installed schema describes it, and every failure has one shape.

use std::process::{Command, Stdio};

use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, Host, binaries, isolated, lan, sample};
use schema::check;
use serde_json::Value;

#[path = "../../../worker/cli/tests/schema/mod.rs"]
mod schema;

const MORE: &str = r#"
    broker { permit limits { limit = "nofile=2000" } }
    cluster {
        cluster_group = mail nodename = mx1
        engine { endpoints = ( "http://127.0.0.1:2379" ) }
        check "smtp" { command = ( /bin/true ) }
    }
    ESMTP_Listener { Listen "10.1.1.40:25" { enable_duravip = true } }"#;

/// Runs the command with `--json`, and returns its exit code and its output.
fn json(host: &Host, words: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(host.binary(binaries::CLIENT));
    let output =
        command.args(["--socket", SOCKET, "--json"]).args(words).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text:?}"));
    (output.status.code(), value)
}

#[test]
fn every_result_is_as_the_schema_describes_it() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(MORE));
        let add: Vec<String> = (10..14).map(|last| format!("10.1.1.{last}")).collect();
        let script = host.file("script", "30 kill 0\n60 start 0\n");
        let add: Vec<&str> = ["address", "add"].into_iter().chain(add.iter().map(String::as_str)).collect();
        for (definition, words) in [
            ("addressBatch", &add[..]),
            ("addressBatch", &["address", "add", "10.1.1.40", "--probes", "0"]),
            ("addressBatch", &["address", "renew", "10.1.1.10", "--lease", "2m"]),
            ("addressBatch", &["address", "announce", "10.1.1.10"]),
            ("addressRenewAll", &["address", "renew-all"]),
            ("addressList", &["address", "list"]),
            ("status", &["status"]),
            ("addressRemove", &["address", "remove", "10.1.1.10"]),
            ("events", &["events"]),
            ("limit", &["limit", "nofile", "core"]),
            ("link", &["link", "eth1", "mtu", "1400"]),
            ("policy", &["policy"]),
            ("runDryRun", &["run", "--dry-run"]),
            ("clusterSettings", &["cluster", "settings"]),
            ("clusterSimulate", &["cluster", "simulate", script.to_str().unwrap()]),
            ("metrics", &["metrics"]),
            ("reload", &["reload"]),
            ("reload", &["reload", "--last"]),
            ("ping", &["ping", "-c", "2"]),
        ] {
            let (code, value) = json(host, words);
            assert_eq!(code, Some(0), "{words:?}: {value}");
            check(definition, &value);
        }
        drop(broker);
    });
}

#[test]
fn every_result_about_the_worker_is_as_the_schema_describes_it() {
    isolated(|host| {
        let worker = r#"worker { command = ( /bin/sleep 1000 ) }"#;
        let _broker = Broker::start(host, &(sample::control(r#"( "127.0.0.1:25" )"#) + worker));
        for (definition, words) in [
            ("workerStatus", &["worker", "status"][..]),
            ("workerStatus", &["worker", "restart"]),
            ("workerSignal", &["worker", "signal", "CONT"]),
            ("status", &["status"]),
            ("metrics", &["metrics"]),
            ("events", &["events"]),
        ] {
            let (code, value) = json(host, words);
            assert_eq!(code, Some(0), "{words:?}: {value}");
            check(definition, &value);
        }
    });
}

#[test]
fn every_failure_has_the_member_error_and_nothing_on_standard_output_otherwise() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(MORE));
        let script = host.file("script", "30 explode\n");
        for (definition, exit, path, words) in [
            ("addressBatch", 77, "/1/error/code", &["address", "add", "10.1.1.10", "172.16.0.1"][..]),
            ("addressBatch", 1, "/0/error/code", &["address", "renew", "10.1.1.77"]),
            ("addressRemove", 1, "/0/error/code", &["address", "remove", "10.1.1.77"]),
            ("unlisten", 1, "/error/code", &["unlisten", "99"]),
            ("failure", 64, "/error/code", &["listen", "10.1.1.1:70000"]),
            ("failure", 64, "/error/code", &["cluster", "simulate", script.to_str().unwrap()]),
            ("failure", 71, "/error/code", &["cluster", "simulate", "/nonexistent"]),
            ("failure", 64, "/error/code", &["address", "add", "10.1.1.10", "--lease", "1.5"]),
            ("failure", 77, "/listeners/0/error/code", &["listen", "/run/a", "/run/b"]),
            ("failure", 1, "/error/code", &["link", "eth1", "mtu", "10"]),
            ("failure", 77, "/address", &["address", "hold", "10.7.7.7"]),
        ] {
            let (code, value) = json(host, words);
            check(definition, &value);
            assert!(value.pointer(path).is_some_and(Value::is_string), "{words:?}: {value}");
            assert_eq!(code, Some(exit), "{words:?}: {value}");
            // For people, a failure is on standard error.
            let mut command = Command::new(host.binary(binaries::CLIENT));
            let output = command.args(["--socket", SOCKET]).args(words).output().unwrap();
            let [shown, error] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
            assert!(shown.lines().all(|line| line.starts_with("10.1.1.10/")), "{words:?}: {shown}");
            assert!(!error.is_empty(), "{words:?}");
        }
        std::fs::write(host.path("portreeve.conf"), "security {").unwrap();
        let (code, value) = json(host, &["reload"]);
        check("reload", &value);
        assert_eq!((code, &value["error"]["code"]), (Some(78), &"invalid".into()), "{value}");
        drop(broker);
        let (code, value) = json(host, &["status"]);
        check("failure", &value);
        assert_eq!((code, &value["error"]["code"]), (Some(69), &"unavailable".into()), "{value}");
    });
}
