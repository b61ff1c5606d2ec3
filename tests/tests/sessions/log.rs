//! The log: the content of a line in each format, and that nothing waits for the reader of the log.

use std::io::{PipeReader, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use portreeve_protocol::event::Subscribe;
use portreeve_protocol::message::Hello;
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::printable::is_printable;
use portreeve_protocol::{FaultCode, Text};
use portreeve_tests::broker::{self, config};
use portreeve_tests::{Broker, Host, Peer, eventually, flood, isolated, sample};
use serde_json::Value;

/// Users of the control socket.
const VICTIM: u32 = 3001;
const HOSTILE: u32 = 3002;

/// A command for a broker with this log format, whose log and requests are not limited.
fn command(host: &Host, format: &str) -> Command {
    command_at(host, format, "info")
}

/// The same with this level.
fn command_at(host: &Host, format: &str, level: &str) -> Command {
    let text = format!(
        r#"{}broker {{
            log_level = {level}
            max_log_lines = 100000
            max_requests = 1000000
            peer "{VICTIM}" {{ allow = ( status listen metrics subscribe ) permit = ( any ) }}
            peer "{HOSTILE}" {{ allow = ( status listen metrics subscribe ) permit = ( any ) }}
        }}"#,
        sample::control(r#"( "127.0.0.1:1-1999" )"#)
    );
    let mut command = broker::command(host, &config(host, &text));
    command.args(["--log-format", format]);
    command
}

/// Causes many lines of which none records a change.
fn say_much(peer: &mut Peer) {
    (0..10_000).for_each(|_| drop(peer.request(&Subscribe { follow: false, all: false }).unwrap()));
}

/// A session of a user who is not root.
fn user(uid: u32) -> Peer {
    Peer::of_user(uid, uid)
}

/// Reads lines from a pipe, pausing after each page.
fn follow(mut reader: PipeReader, pause: Duration) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let mut page = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut page) {
            text.extend_from_slice(&page[..length]);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8(text.drain(..=end).collect()).unwrap();
                let _ = sender.send(line); // the test may have ended
            }
            std::thread::sleep(pause);
        }
    });
    lines
}

/// A broker that logs to a pipe.
fn start_with_pipe(host: &Host) -> (Broker, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = command(host, "text");
    command.stdout(Stdio::null()).stderr(writer);
    (Broker::launch(host, command), reader)
}

#[test]
fn a_flood_with_a_reader_that_does_not_read_loses_no_line_of_others_and_no_change_of_its_own() {
    isolated(|host| {
        let (broker, reader) = start_with_pipe(host);
        let (mut hostile, mut victim, mut root) = (user(HOSTILE), user(VICTIM), broker.peer());
        say_much(&mut hostile);
        hostile.listen("127.0.0.1:1500").unwrap();
        victim.listen("127.0.0.1:1600").unwrap();
        root.listen("127.0.0.1:1700").unwrap();
        let lost = root.request(&MetricsRequest {}).unwrap().0.log.lost;
        assert!(lost > 0, "the flood must fill its share");
        let lines = follow(reader, Duration::ZERO);
        let mut read = Vec::new();
        let report = eventually("the count", || {
            read.extend(lines.try_iter());
            read.iter().find(|line| line.contains("log lines were dropped")).cloned()
        });
        assert!(report.contains(&format!("peer=\"user {HOSTILE}\" lines={lost}")), "{report}");
        for (peer, endpoint) in [(HOSTILE, 1500), (VICTIM, 1600), (0, 1700)] {
            let listen = format!("arguments=127.0.0.1:{endpoint}");
            let is_audit = |line: &&String| line.contains(&listen) && line.contains(&format!("user {peer}"));
            assert!(read.iter().any(|line| is_audit(&line)), "no line of user {peer} among {}", read.len());
        }
    });
}

#[test]
fn a_peer_that_changes_state_faster_than_the_log_is_read_waits_and_loses_no_line() {
    isolated(|host| {
        // A root client waits for much less long, so its flood needs a reader that reads at all.
        for (uid, pause) in [(HOSTILE, None), (HOSTILE, Some(10)), (0, Some(5))] {
            let (mut broker, reader) = start_with_pipe(host);
            let (mut hostile, mut victim) = (user(uid), user(VICTIM));
            let idle = flood::latency(&mut victim, Duration::from_millis(200));
            let mut lines = None;
            let mut reader = Some(reader);
            if let Some(pause) = pause {
                lines = reader.take().map(|reader| follow(reader, Duration::from_millis(pause)));
            }
            let stop = AtomicBool::new(false);
            let (made, busy) = std::thread::scope(|scope| {
                let flood = scope.spawn(|| {
                    let mut made = 0;
                    while !stop.load(Ordering::Relaxed) {
                        hostile.stop(&[]);
                        made += 1;
                    }
                    made
                });
                let busy = flood::latency(&mut victim, Duration::from_secs(2));
                stop.store(true, Ordering::Relaxed);
                (flood.join().unwrap(), busy)
            });
            println!(
                "user {uid}, pause {pause:?}: {made} requests, the victim's ping {idle:?}, then {busy:?}"
            );
            assert!(busy < idle * 2 + Duration::from_millis(100), "{busy:?}");
            assert_eq!(victim.request(&MetricsRequest {}).unwrap().0.log.lost, 0);
            let lines = lines.or_else(|| reader.take().map(|reader| follow(reader, Duration::ZERO))).unwrap();
            let mut found = 0;
            eventually("every line", || {
                found += lines.try_iter().filter(|line| line.contains("operation=\"stop\"")).count() as u64;
                (found == made).then_some(())
            });
            assert!(broker.terminate().success());
        }
    });
}

#[test]
fn a_stalled_log_reader_loses_counted_lines_and_blocks_no_peer() {
    isolated(|host| {
        let (mut broker, reader) = start_with_pipe(host);
        let flags = rustix::fs::fcntl_getfl(reader.as_fd()).unwrap();
        assert!(
            !flags.contains(rustix::fs::OFlags::NONBLOCK),
            "the broker must not change the flags of a shared pipe"
        );
        let mut peer = broker.peer();
        say_much(&mut peer);
        let lost = peer.request(&MetricsRequest {}).unwrap().0.log.lost;
        assert!(lost > 0, "the pipe must be full");
        let lines = follow(reader, Duration::ZERO);
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
        let (mut broker, reader) = start_with_pipe(host);
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
        (0..100).for_each(|_| drop(peer.request(&Subscribe { follow: false, all: false }).unwrap()));
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
    let client: Text<64> =
        Text::truncated("e\"} peer=root\n\u{1b}[2J\u{9b}31m\0\u{202e}\u{2028}\nMESSAGE=forged");
    peer.request(&Hello { client, features: 0 }).unwrap();
    peer.listen("127.0.0.1:1001").unwrap();
    assert_eq!(peer.listen("127.0.0.1:2001").unwrap_err().code, FaultCode::Denied);
}

#[test]
fn each_line_is_a_json_object_whatever_a_peer_sends() {
    isolated(|host| {
        let broker = Broker::start_command(host, command_at(host, "json", "debug"));
        decisions(&broker);
        broker.log.wait_for(&["session ended"]);
        let lines = broker.log.lines();
        assert!(lines.concat().chars().all(is_printable));
        let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let audit = |message: &str, operation: &str| {
            let mut found = lines.iter().filter(|line| line["target"] == "audit");
            found.find(|line| line["message"] == message && line["operation"] == operation).unwrap()
        };
        let granted = audit("done", "listen");
        assert_eq!(granted["arguments"], "127.0.0.1:1001");
        assert_eq!(granted["peer"], "user 0 (root)");
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
        let mut command = command_at(host, "journald", "debug");
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
            assert!(entry.chars().all(|c| c == '\n' || is_printable(c)), "{entry}");
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
            "PORTREEVE_PEER=user 0 (root)",
        ] {
            assert!(refused.lines().any(|line| line == field), "{field} in {refused}");
        }
        assert!(!refused.contains("ERRNO="), "no system call failed: {refused}");
        assert!(entries.iter().any(|entry| entry.contains("\nPORTREEVE_RULES=/")), "{entries:?}");
        // Escaped once: a quote is itself, a newline is \n.
        let client = "PORTREEVE_ARGUMENTS=e\"} peer=root\\n\\u{1b}[2J\\u{9b}31m\\u{0}\\u{202e}\\u{2028}\\nMESSAGE=forged";
        assert!(entries.iter().flat_map(|entry| entry.lines()).any(|line| line == client), "{entries:?}");
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
