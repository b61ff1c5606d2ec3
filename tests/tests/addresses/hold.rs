//! `portreeve address hold`: an address is held until the command ends, or until the address is lost.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, Host, binaries, eventually, isolated, lan, sample};
use rustix::process::{Pid, Signal, kill_process};

/// Starts the command, and returns when it holds the addresses.
fn hold(host: &Host, words: &[&str]) -> Child {
    let mut command = Command::new(host.binary(binaries::CLIENT));
    command.args(["--socket", SOCKET, "address", "hold"]).args(words);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.ends_with(" is held on eth1\n"), "{line:?}");
    child
}

/// Waits for the end of the command, and returns its exit code and what it wrote to standard error.
fn end(mut child: Child) -> (Option<i32>, String) {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

fn portreeve(host: &Host, words: &[&str]) -> String {
    let mut command = Command::new(host.binary(binaries::CLIENT));
    let output = command.args(["--socket", SOCKET]).args(words).output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

fn renewals(host: &Host) -> u64 {
    let metrics: serde_json::Value = serde_json::from_str(&portreeve(host, &["metrics", "--json"])).unwrap();
    metrics["addresses"]["renewals"].as_u64().unwrap()
}

#[test]
fn addresses_are_held_beyond_their_lease_and_removed_when_the_command_is_ended() {
    isolated(|host| {
        lan::create(&["far"]);
        let _broker = Broker::start(host, &sample::addresses(""));
        // The command takes over what this user added before.
        portreeve(host, &["address", "add", "10.1.1.7", "--lease", "60"]);
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            // The shell that starts the test ignores SIGINT, but the command handles it all the same.
            let child = hold(host, &["10.1.1.7", "2001:db8::7", "--lease", "3s", "--probes", "0"]);
            let before = renewals(host);
            // Each lease is renewed five times in its length.
            eventually("renewals of two addresses", || (renewals(host) >= before + 12).then_some(()));
            assert!(lan::show_address("10.1.1.7").is_some() && lan::show_address("2001:db8::7").is_some());
            kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal).unwrap();
            assert_eq!(end(child), (Some(0), String::new()));
            assert!(lan::show_address("10.1.1.7").is_none() && lan::show_address("2001:db8::7").is_none());
        }
    });
}

#[test]
fn a_lost_address_ends_the_command_and_removes_the_others() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let child = hold(host, &["10.1.1.7", "10.1.1.8", "--lease", "5"]);
        let removed = portreeve(host, &["address", "remove", "10.1.1.7"]);
        assert_eq!(removed, "10.1.1.7 was removed\n");
        let (code, text) = end(child);
        assert!(code == Some(1) && text.starts_with("portreeve: 10.1.1.7 is not held: "), "{code:?} {text}");
        assert!(lan::show_address("10.1.1.8").is_none());
        // An address that cannot be added ends it at once, without the others.
        let words = ["--socket", SOCKET, "address", "hold", "10.1.1.8", "10.1.1.201"];
        let output = Command::new(host.binary(binaries::CLIENT)).args(words).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(1) && text.contains("10.1.1.201 is not held: the host"),
            "{text}"
        );
        assert!(output.stdout.is_empty() && lan::show_address("10.1.1.8").is_none());
        drop(broker);
    });
}

#[test]
fn an_address_is_held_also_by_the_next_broker() {
    isolated(|host| {
        lan::create(&["far"]);
        let mut broker = Broker::start(host, &sample::addresses(""));
        let child = hold(host, &["10.1.1.7", "--lease", "30", "--probes", "0"]);
        broker.replace(host, &sample::addresses(""));
        eventually("a renewal", || (renewals(host) > 0).then_some(()));
        kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
        assert_eq!(end(child), (Some(0), String::new()));
        assert!(lan::show_address("10.1.1.7").is_none());
    });
}
