//! `portreeve metrics`: the Prometheus text format on standard output and over HTTP, with a broker and without one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use portreeve_protocol::address::{AddressPage, AddressRow, Lease, ListAddresses};
use portreeve_protocol::message::OPERATIONS;
use portreeve_protocol::metrics::*;
use portreeve_protocol::status::Quota;
use portreeve_protocol::{List, Text};
use support::{Broker, broker_at};

/// Text that a label must escape.
const EVIL: &str = "e\"} 1\n\u{1b}[2J\\";

fn metrics() -> Metrics {
    let operations = OPERATIONS.iter().map(|(_, name)| OperationCounts {
        name: Text::truncated(name),
        granted: 5,
        denied: 2,
        quota: 1,
        failed: 3,
        latencies: List::truncated([4, 6, 1]),
        sum_us: 2_345_000,
    });
    Metrics {
        release: Text::truncated("0.1.0"),
        uptime_ms: 61_005,
        bounds_us: List::truncated([10, 1_000]),
        operations: List::truncated(operations),
        quotas: List::truncated([Quota { name: Text::truncated("max_sessions"), limit: 64 }]),
        peers: List::truncated([PeerCounts {
            peer: Text::truncated(EVIL),
            sessions: 2,
            listeners: 4,
            refused: 3,
        }]),
        sessions: SessionCounts { open: 2, opened: 9, rejected: 1, malformed: 3, delayed: 4 },
        listeners: ListenerCounts { held: 6, retained: 1, limit: 1_000, missing: 2 },
        addresses: Some(AddressCounts { held: 1, next_expiry_ms: Some(2_500), ..AddressCounts::default() }),
        worker: Some(WorkerCounts { running: true, restarts: 2 }),
        log: LogCounts { suppressed: 8, lost: 9 },
        events: EventCounts { subscribers: 1, lost: 7 },
    }
}

fn lease() -> AddressRow {
    let lease = Lease {
        address: "192.0.2.1".parse().unwrap(),
        interface: Text::truncated("eth1"),
        prefix: 24,
        remaining_ms: 2_500,
        epoch: 0,
        follows: None,
    };
    AddressRow { lease, holder: Text::truncated("user 8"), present: true }
}

/// Replies to the requests of `portreeve metrics` until it closes the session.
fn serve(broker: &mut Broker) {
    while let Some(request) = broker.next() {
        if request.is::<MetricsRequest>() {
            broker.reply::<MetricsRequest>(&request, &metrics(), &[]);
        } else {
            request.read::<ListAddresses>();
            let page = AddressPage {
                fenced: true,
                addresses: List::truncated([lease()]),
                more: false,
                ..AddressPage::default()
            };
            broker.reply::<ListAddresses>(&request, &page, &[]);
        }
    }
}

fn portreeve(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
    command.env_clear().args(["--socket".as_ref(), socket.as_os_str()]).arg("metrics").args(arguments);
    command
}

fn printed(socket: &Path, arguments: &[&str]) -> String {
    let output = portreeve(socket, arguments).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn metrics_are_printed_in_the_prometheus_text_format() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    let _broker = broker_at(&socket, serve);
    let text = printed(&socket, &[]);
    for line in [
        "portreeve_up 1",
        "portreeve_build_info{release=\"0.1.0\"} 1",
        "portreeve_uptime_seconds 61.005",
        "portreeve_requests_total{operation=\"listen\",outcome=\"denied\"} 2",
        "portreeve_request_duration_seconds_bucket{operation=\"listen\",le=\"0.00001\"} 4",
        "portreeve_request_duration_seconds_bucket{operation=\"listen\",le=\"0.001\"} 10",
        "portreeve_request_duration_seconds_bucket{operation=\"listen\",le=\"+Inf\"} 11",
        "portreeve_request_duration_seconds_sum{operation=\"listen\"} 2.345",
        "portreeve_request_duration_seconds_count{operation=\"listen\"} 11",
        "portreeve_lease_soonest_end_seconds 2.500",
        "portreeve_lease_remaining_seconds{address=\"192.0.2.1\",interface=\"eth1\",holder=\"user 8\"} 2.500",
        "portreeve_quota_limit{option=\"max_sessions\"} 64",
        "portreeve_peer_sessions{peer=\"e\\\"} 1\\\\u{a}\\\\u{1b}[2J\\\\\"} 2",
    ] {
        assert!(text.lines().any(|printed| printed == line), "{line} in {text}");
    }
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
}

#[test]
fn metrics_are_printed_as_one_json_value() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    let _broker = broker_at(&socket, serve);
    let text = printed(&socket, &["--json"]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["sessions"]["opened"], 9);
    assert_eq!(value["peers"][0]["peer"], EVIL);
    assert!(!text.trim_end().contains(char::is_control));
}

/// `portreeve metrics --listen`, and the address that it serves on.
struct Exporter {
    child: Child,
    address: String,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Exporter {
    fn start(socket: &Path) -> Self {
        let mut command = portreeve(socket, &["--listen", "127.0.0.1:0"]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut exporter =
            Self { stderr: BufReader::new(child.stderr.take().unwrap()), child, address: String::new() };
        let line = exporter.line();
        let address = line.strip_prefix("portreeve: serving http://").unwrap();
        exporter.address = address.strip_suffix("/metrics until interrupted").unwrap().to_owned();
        exporter
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn say(&self, request: &[u8]) -> String {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        // It may reply and close the connection before it has read everything.
        let _ = connection.write_all(request);
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn get(&self, path: &str) -> String {
        self.say(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn metrics_are_served_over_http_and_show_whether_the_broker_is_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    let mut exporter = Exporter::start(&socket);
    let down = exporter.get("/metrics");
    assert!(down.starts_with("HTTP/1.1 200 OK\r\n") && down.ends_with("\nportreeve_up 0\n"), "{down}");
    assert!(exporter.line().contains("cannot connect to the broker at"));

    let broker = broker_at(&socket, |broker| {
        let request = broker.next().unwrap();
        broker.reply::<MetricsRequest>(&request, &Metrics { addresses: None, ..metrics() }, &[]);
    });
    let up = exporter.get("/metrics");
    assert!(up.contains("\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{up}");
    assert!(up.contains("\nportreeve_up 1\n"), "{up}");
    assert_eq!(exporter.line(), "portreeve: the broker replies again");
    broker.join().unwrap();

    // The old session has ended; the exporter opens a new one with the next broker.
    std::fs::remove_file(&socket).unwrap();
    let _broker = broker_at(&socket, serve);
    assert!(exporter.get("/metrics").contains("\nportreeve_up 1\n"));
}

#[test]
fn malformed_and_silent_http_clients_do_not_delay_others() {
    let folder = tempfile::tempdir().unwrap();
    let exporter = Exporter::start(&folder.path().join("broker.sock"));
    let _silent: Vec<_> = (0..8).map(|_| TcpStream::connect(&exporter.address).unwrap()).collect();
    assert!(exporter.get("/").starts_with("HTTP/1.1 404 "));
    assert!(exporter.say(b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(exporter.say(b"\x1b\0\n\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = exporter.say(long.as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(exporter.get("/metrics").ends_with("\nportreeve_up 0\n"));
}

#[test]
fn a_port_in_use_exits_71_with_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = portreeve(&folder.path().join("broker.sock"), &["--listen", &address]).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Address already in use"));
}

const DASHBOARD: &str = include_str!("../../../deploy/monitoring/dashboard.json");
const ALERTS: &str = include_str!("../../../deploy/monitoring/alerts.yml");

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    words.filter(|word| word.starts_with("portreeve_")).collect()
}

#[test]
fn dashboard_and_alerts_use_existing_metrics_and_the_dashboard_uses_all() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    let _broker = broker_at(&socket, serve);
    let page = printed(&socket, &[]);
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let families: BTreeSet<&str> = families.collect();
    serde_json::from_str::<serde_json::Value>(DASHBOARD).unwrap();
    let family = |name| str::strip_suffix(name, "_bucket").unwrap_or(name);
    // Those of the cluster are the coordinator's.
    let of_broker = |text: &'static str| -> BTreeSet<&str> {
        let names = names(text).into_iter().filter(|name| !name.starts_with("portreeve_cluster_"));
        names.map(family).collect()
    };
    assert_eq!(of_broker(DASHBOARD), families, "in the dashboard, and on the page");
    let alerted = of_broker(ALERTS);
    assert!(alerted.len() > 10);
    assert!(alerted.is_subset(&families), "{:?} do not exist", alerted.difference(&families));
}

/// The output of Prometheus's own tool for a page or a file. The variable PROMTOOL has its path.
fn promtool(arguments: &[&str], input: Stdio) -> String {
    let program = std::env::var_os("PROMTOOL").expect("set PROMTOOL to the path of promtool");
    let output = Command::new(program).args(arguments).stdin(input).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
#[ignore = "needs promtool"]
fn promtool_accepts_the_page_and_the_alerts() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    let _broker = broker_at(&socket, serve);
    let mut page = tempfile::tempfile().unwrap();
    page.write_all(printed(&socket, &[]).as_bytes()).unwrap();
    page.rewind().unwrap();
    assert_eq!(promtool(&["check", "metrics"], page.into()), "");
    let alerts = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/monitoring/alerts.yml");
    assert!(promtool(&["check", "rules", alerts], Stdio::null()).contains("SUCCESS"));
}
