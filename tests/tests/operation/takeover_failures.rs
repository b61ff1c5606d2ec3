//! Takeovers that fail: the running broker continues as if nothing had happened.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use portreeve_protocol::FaultCode;
use portreeve_protocol::address::{ListAddresses, RemoveAddress};
use portreeve_protocol::takeover::{Begin, Commit, NextBatch, TAKEOVER_VERSION, Takeover};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::peer::one_address;
use portreeve_tests::{
    Broker, Host, Peer, StartupFailure, binaries, eventually, isolated, lan, sample, startup_steps,
};
use rustix::process::{Pid, Signal, kill_process};

/// A broker with every kind of state that a takeover passes on.
fn everything(host: &Host) -> (String, Broker, Peer) {
    lan::create(&["far"]);
    let more = r#"
        broker { permit "files" { listen = ( "/run/host/*" ) } }
        ESMTP_Listener { Listen "127.0.0.1:2525" {} }"#;
    let text = sample::addresses(more);
    let broker = Broker::start(host, &text);
    let mut peer = broker.peer();
    peer.listen("127.0.0.1:25").unwrap();
    peer.listen("/run/host/stream.sock").unwrap();
    peer.add_address("10.1.1.7", |add| (add.lease, add.epoch) = (Some(600), 7)).unwrap();
    peer.add_address("10.1.1.8", |add| (add.lease, add.epoch) = (Some(600), 8)).unwrap();
    peer.request(&RemoveAddress { addresses: one_address("10.1.1.8"), epoch: 8 }).unwrap();
    (text, broker, peer)
}

/// That state, as a peer and the host see it.
fn state(peer: &mut Peer) -> String {
    let status = peer.status();
    let addresses = peer.request(&ListAddresses { after: None }).unwrap().0;
    let mut rows = addresses.addresses.into_vec();
    assert!(rows.iter_mut().all(|row| std::mem::take(&mut row.lease.remaining_ms) > 500_000));
    let fence = Command::new("nft").args(["list", "table", "inet", "portreeve"]).output().unwrap();
    // The remaining time of an element changes, so it is omitted.
    let fence = String::from_utf8(fence.stdout).unwrap();
    let fence = fence.split("expires").next().unwrap_or_default().to_owned();
    let files = ["broker.sock", "stream.sock"]
        .map(|name| std::fs::symlink_metadata(format!("/run/host/{name}")).unwrap().ino());
    format!(
        "{:?} {:?} {rows:?} {:?} {files:?} {fence}",
        status.processes[0].pid,
        status.listeners,
        lan::show_address("10.1.1.7").map(|line| line.split("valid_lft").next().map(str::to_owned)),
    )
}

fn taking_over(host: &Host, how: &[&str]) -> StartupFailure {
    let mut command = Command::new(host.binary(binaries::HOSTILE_BROKER));
    command.args(["--takeover", "--config"]).arg(host.path("portreeve.conf")).args(how).stdin(Stdio::null());
    StartupFailure::of_command(command)
}

#[test]
fn a_takeover_that_fails_or_is_killed_at_any_step_changes_nothing() {
    isolated(|host| {
        let (text, mut first, mut peer) = everything(host);
        let before = state(&mut peer);
        let descriptors = first.descriptors();
        let apart = ["control", "launcher.", "worker.", "reader."];
        let start =
            startup_steps::START.iter().filter(|step| !apart.iter().any(|part| step.starts_with(part)));
        for step in start.chain(startup_steps::TAKEOVER).copied().chain(["control.epoll"]) {
            for how in ["--fail", "--kill"] {
                let refusal = taking_over(host, &[how, step]);
                match how {
                    "--fail" => assert_eq!(refusal.code, Some(71), "{step}: {}", refusal.message),
                    _ => assert_eq!(refusal.code, None, "{step}: {}", refusal.message),
                }
                assert_eq!(state(&mut peer), before, "{how} {step}");
                assert_eq!(broker_of_a_new_session(), first.pid());
            }
        }
        first.await_no_leak(&descriptors);
        let second = first.start_successor(host, &text);
        assert!(first.wait_for_exit().success());
        assert_eq!(broker_of_a_new_session(), second.pid());
    });
}

fn broker_of_a_new_session() -> u32 {
    let mut peer = Peer::connect(std::path::Path::new(SOCKET)).unwrap();
    peer.hello().broker
}

#[test]
fn a_stalled_takeover_is_aborted_at_its_deadline_and_a_second_one_is_refused() {
    isolated(|host| {
        let (_, broker, mut peer) = everything(host);
        let before = state(&mut peer);
        // Once before the other sessions are paused, and once while they are.
        for (count, step) in (1..).zip(["takeover.control", "takeover.imported"]) {
            let mut command = Command::new(host.binary(binaries::HOSTILE_BROKER));
            command.args(["--takeover", "--config"]).arg(host.path("portreeve.conf")).args(["--stall", step]);
            let mut stalled = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            broker
                .log
                .wait_for(&["takeover", if step == "takeover.imported" { "next batch" } else { "begin" }]);
            let begun = Instant::now();
            if step == "takeover.control" {
                let refusal = taking_over(host, &[]);
                assert_eq!(refusal.code, Some(69), "{}", refusal.message);
                assert!(refusal.message.contains("another takeover is in progress"), "{}", refusal.message);
                peer.ping();
            }
            eventually("the end of the takeover", || {
                let lines = broker.log.lines();
                let ends = lines.iter().filter(|line| line.contains("a takeover was aborted")).count();
                (ends == count).then_some(())
            });
            assert_eq!(state(&mut peer), before, "{step}");
            println!("{step}: {:?}", begun.elapsed());
            assert_eq!(broker_of_a_new_session(), broker.pid());
            stalled.kill().unwrap();
            stalled.wait().unwrap();
        }
    });
}

#[test]
fn a_broker_that_dies_during_a_takeover_leaves_no_half_started_successor() {
    isolated(|host| {
        let (_, broker, _peer) = everything(host);
        let mut command = Command::new(host.binary(binaries::HOSTILE_BROKER));
        command
            .args(["--takeover", "--config"])
            .arg(host.path("portreeve.conf"))
            .args(["--stall", "takeover.imported"]);
        let mut stalled = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        broker.log.wait_for(&["takeover", "next batch"]);
        broker.signal(Signal::KILL);
        stalled.kill().unwrap();
        stalled.wait().unwrap();
        drop(broker);
        let refusal = taking_over(host, &[]);
        assert_eq!(refusal.code, Some(69), "{}", refusal.message);
        assert!(refusal.message.contains("start portreeved without --takeover"), "{}", refusal.message);
        // A normal start works as after any crash.
        let broker = Broker::start(host, &sample::addresses(""));
        broker.peer().listen("127.0.0.1:25").unwrap();
        assert_eq!(lan::show_address("10.1.1.7"), None);
    });
}

#[test]
fn a_broker_that_dies_after_it_exported_everything_is_replaced_by_its_successor() {
    isolated(|host| {
        let text =
            sample::control(r#"( "127.0.0.1:25" )"#) + r#"ESMTP_Listener { Listen "127.0.0.1:2525" {} }"#;
        let broker = Broker::start(host, &text);
        let mut command = Command::new(host.binary(binaries::HOSTILE_BROKER));
        command.args(["--takeover", "--config"]).arg(host.path("portreeve.conf"));
        command.args(["--stall", "takeover.commit"]).stdin(Stdio::null()).stderr(Stdio::null());
        let mut successor = command.spawn().unwrap();
        // One batch of listeners, and the end.
        eventually("the export", || {
            let lines = broker.log.lines();
            (lines.iter().filter(|line| line.contains("next batch")).count() == 2).then_some(())
        });
        broker.signal(Signal::KILL);
        eventually("the end of the predecessor", || (!broker.is_running()).then_some(()));
        let pid = Pid::from_child(&successor);
        kill_process(pid, Signal::USR1).unwrap();
        let mut peer = eventually("a session", || {
            let mut peer = Peer::connect(std::path::Path::new(SOCKET)).ok()?;
            (peer.hello().broker == successor.id()).then_some(peer)
        });
        assert_eq!(peer.status().listeners_held, 1);
        peer.listen("127.0.0.1:25").unwrap();
        std::net::TcpStream::connect("127.0.0.1:2525").unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(successor.wait().unwrap().success());
    });
}

#[test]
fn only_root_can_take_over_whatever_the_policy_says() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let mut other = Peer::connect_as(std::path::Path::new(SOCKET), WORKER, WORKER).unwrap();
        assert!(!other.hello().operations.iter().any(|name| &**name == "takeover"));
        let begin = Takeover::Begin(Begin { oldest: TAKEOVER_VERSION, newest: TAKEOVER_VERSION });
        assert_eq!(other.request(&begin).unwrap_err().code, FaultCode::Denied);
        let allowed = sample::control(r#"( "127.0.0.1:25" )"#)
            + r#"broker { peer daemon { allow = ( takeover ) permit = ( any ) } }"#;
        let path = host.file("allowed.conf", &allowed);
        let check = Command::new(host.binary(binaries::BROKER)).arg("check").arg(path).output().unwrap();
        let printed = String::from_utf8_lossy(&check.stderr);
        assert!(!check.status.success() && printed.contains("is not an operation"), "{printed}");

        let mut root = broker.peer();
        for (step, why) in [
            (Takeover::NextBatch(NextBatch {}), "has not begun one"),
            (Takeover::Commit(Commit {}), "has not begun one"),
        ] {
            let fault = root.request(&step).unwrap_err();
            assert!(fault.code == FaultCode::Malformed && fault.message.contains(why), "{fault}");
        }
        let fault =
            root.request(&Takeover::Begin(Begin { oldest: TAKEOVER_VERSION + 1, newest: 9 })).unwrap_err();
        assert_eq!(fault.code, FaultCode::Unsupported, "{fault}");
        root.request(&begin).unwrap();
        let fault = root.request(&Takeover::Commit(Commit {})).unwrap_err();
        assert!(fault.message.contains("not everything"), "{fault}");
        drop(root);
        broker.peer().ping();
    });
}
