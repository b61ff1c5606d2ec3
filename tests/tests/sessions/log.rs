//! The log: the content of a line in each format, and that nothing waits for the reader of the log.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portreeve_protocol::message::Hello;
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::{FaultCode, Text};
use portreeve_tests::broker::{self, config};
use portreeve_tests::{Broker, Host, Peer, eventually, isolated, sample};
use serde_json::Value;

/// A command for a broker with this log format.
fn command(host: &Host, format: &str) -> Command {
    let text = format!("{}broker {{ max_log_lines = 1000 }}", sample::control(r#"( "127.0.0.1:1-1999" )"#));
    let mut command = broker::command(host, &config(host, &text));
    command.args(["--log-format", format]);
    command
}

fn say_much(peer: &mut Peer) {
    (0..10_000).for_each(|_| drop(peer.hello()));
}

#[test]
fn a_stalled_log_reader_loses_counted_lines_and_blocks_no_peer() {
    isolated(|host| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = command(host, "text");
        command.stdout(Stdio::null()).stderr(writer);
        let mut broker = Broker::launch(host, command);
        let flags = rustix::fs::fcntl_getfl(reader.as_fd()).unwrap();
        assert!(
            !flags.contains(rustix::fs::OFlags::NONBLOCK),
            "the broker must not change the flags of a shared pipe"
        );
        let mut peer = broker.peer();
        say_much(&mut peer);
        let lost = peer.request(&MetricsRequest {}).unwrap().0.log.lost;
        assert!(lost > 0, "the pipe must be full");
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            let mut page = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut page) {
                text.push_str(std::str::from_utf8(&page[..length]).unwrap_or("?"));
                while let Some((line, rest)) = text.split_once('\n') {
                    let _ = sender.send(line.to_owned()); // the test may have ended
                    text = rest.to_owned();
                }
            }
        });
        // An idle broker reports the loss too: no request is sent meanwhile.
        let report =
            eventually("the count", || lines.try_iter().find(|line| line.contains("log lines were dropped")));
        assert!(report.contains(&format!("lines={lost}")), "{report}");
        assert!(broker.terminate().success());
    });
}

#[test]
fn a_log_reader_that_never_reads_delays_the_end_by_at_most_a_second() {
    isolated(|host| {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = command(host, "text");
        command.stdout(Stdio::null()).stderr(writer);
        let mut broker = Broker::launch(host, command);
        say_much(&mut broker.peer());
        let begin = Instant::now();
        assert!(broker.terminate().success());
        println!("it ended after {:?}", begin.elapsed());
        assert!(begin.elapsed() < Duration::from_secs(20));
        drop(reader);
    });
}

#[test]
fn a_closed_log_pipe_neither_ends_a_broker_nor_changes_the_exit_code() {
    isolated(|host| {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut quiet = command(host, "text");
        quiet.stdout(Stdio::null()).stderr(writer.try_clone().unwrap());
        let mut broker = Broker::launch(host, quiet);
        drop(reader);
        let mut peer = broker.peer();
        (0..100).for_each(|_| drop(peer.hello()));
        eventually("lost lines", || (peer.request(&MetricsRequest {}).unwrap().0.log.lost > 0).then_some(()));
        assert!(broker.terminate().success());

        let mut wrong = broker::command(host, &config(host, "security { user = }"));
        let status = wrong.stderr(writer).stdout(Stdio::null()).status().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(78), None));
    });
}

/// Makes a grant, a denial and a malicious client name, which each format must log.
fn decisions(broker: &Broker) {
    let mut peer = broker.connect();
    let client: Text<64> = Text::truncated("e\"}\n\u{1b}[2J\u{9b}31m\0\nMESSAGE=forged");
    peer.request(&Hello { client, features: 0 }).unwrap();
    peer.listen("127.0.0.1:1001").unwrap();
    assert_eq!(peer.listen("127.0.0.1:2001").unwrap_err().code, FaultCode::Denied);
}

#[test]
fn each_line_is_a_json_object_whatever_a_peer_sends() {
    isolated(|host| {
        let broker = Broker::start_command(host, command(host, "json"));
        decisions(&broker);
        broker.log.wait_for(&["session ended"]);
        let lines = broker.log.lines();
        assert!(!lines.concat().contains(char::is_control));
        let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let audit = |message: &str, operation: &str| {
            let mut found = lines.iter().filter(|line| line["target"] == "audit");
            found.find(|line| line["message"] == message && line["operation"] == operation).unwrap()
        };
        let granted = audit("done", "listen");
        assert_eq!(granted["arguments"], "127.0.0.1:1001");
        assert_eq!(granted["peer"], "user 0");
        assert!(granted["rules"].as_str().unwrap().contains("portreeve.conf:"), "{granted}");
        assert!(granted["duration_us"].is_u64() && granted["session"].is_u64(), "{granted}");
        let refused = audit("refused", "listen");
        assert_eq!((&refused["code"], &refused["level"]), (&"denied".into(), &"WARN".into()));
        assert!(refused["subject"].as_str().unwrap().contains("portreeve.conf:"), "{refused}");
        assert!(
            refused["reason"].as_str().unwrap().starts_with("user 0 is not allowed to listen"),
            "{refused}"
        );
    });
}

#[test]
fn the_journal_gets_an_entry_with_fields_for_each_line() {
    isolated(|host| {
        std::fs::create_dir_all("/run/systemd/journal").unwrap();
        let journal = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
        journal.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut command = command(host, "journald");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let broker = Broker::launch(host, command);
        decisions(&broker);
        let mut buffer = vec![0; 1 << 16];
        let mut entries = Vec::new();
        let refused = loop {
            let length = journal.recv(&mut buffer).unwrap();
            let entry = String::from_utf8(buffer[..length].to_vec()).unwrap();
            for line in entry.lines() {
                let (name, _) = line.split_once('=').unwrap_or_else(|| panic!("{entry}"));
                assert!(name.chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{entry}");
            }
            assert_eq!(entry.lines().filter(|line| line.starts_with("MESSAGE=")).count(), 1, "{entry}");
            entries.push(entry.clone());
            if entry.contains("MESSAGE=audit: refused") {
                break entry;
            }
        };
        for field in [
            "PRIORITY=4",
            "SYSLOG_IDENTIFIER=portreeved",
            "PORTREEVE_TARGET=audit",
            "PORTREEVE_OPERATION=listen",
            "PORTREEVE_CODE=denied",
            "PORTREEVE_ARGUMENTS=127.0.0.1:2001",
            "PORTREEVE_PEER=user 0",
            "ERRNO=0",
        ] {
            assert!(refused.lines().any(|line| line == field), "{field} in {refused}");
        }
        assert!(entries.iter().any(|entry| entry.contains("\nPORTREEVE_RULES=/")), "{entries:?}");
    });
}

#[test]
fn a_missing_journal_is_a_named_error() {
    isolated(|host| {
        let output = command(host, "journald").output().unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(69), "{printed}");
        assert!(
            printed.starts_with("portreeved: log: cannot connect to the journal at /run/systemd"),
            "{printed}"
        );
        let output = command(host, "xml").output().unwrap();
        assert_eq!(output.status.code(), Some(64));
    });
}
