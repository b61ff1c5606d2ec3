//! The state of the worker, a restart on request, and signals to it.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use portreeve::{Channel, blocking};
use portreeve_protocol::worker::{RestartWorker, SignalWorker, WorkerRequest, WorkerStatus};
use portreeve_protocol::{Fault, FaultCode};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::namespaces::run;
use portreeve_tests::peer::Peer;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, binaries, eventually, isolated, sample};
use rustix::process::Signal;

const USER1: u8 = libc::SIGUSR1 as u8;

/// A configuration with a worker of this command and these options, outside any chroot.
fn config(command: &str, options: &str) -> String {
    format!(
        r#"
        {}
        peer_scope
        worker {{ command = ( {command} ) {options} }}
        ESMTP_Listener {{ Listen "127.0.0.1:25" {{}} }}"#,
        sample::control(r#"( "127.0.0.1:2525" )"#)
    )
    .replace(
        "peer_scope",
        "broker { peer 3 { allow = worker } peer 4 { allow = \"worker\" } peer 5 { allow = status } }",
    )
}

fn status(peer: &mut Peer) -> WorkerStatus {
    peer.request(&WorkerRequest {}).unwrap().0
}

fn restart(peer: &mut Peer) -> Result<WorkerStatus, Fault> {
    peer.request(&RestartWorker {}).map(|(status, _)| status)
}

fn signal(peer: &mut Peer, signal: u8) -> Result<u32, Fault> {
    peer.request(&SignalWorker { signal }).map(|(sent, _)| sent.pid)
}

/// Waits until the worker has this state.
fn await_state(peer: &mut Peer, state: &str) -> WorkerStatus {
    eventually(state, || Some(status(peer)).filter(|status| &*status.state == state))
}

#[test]
fn a_requested_restart_keeps_the_listeners_and_replies_when_the_new_worker_runs() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let rest =
            format!(r#"ESMTP_Listener {{ Listen "127.0.0.1:25" {{}} }} broker {{ socket = "{SOCKET}" }}"#);
        let broker =
            Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest));
        let (first, _) = setup.accept();
        let mut peer = broker.peer();
        let before = status(&mut peer);
        assert_eq!((&*before.state, before.restarts, before.pid), ("running", 0, broker.worker()));
        let waiting = TcpStream::connect("127.0.0.1:25").unwrap();
        let after = restart(&mut peer).unwrap();
        assert_eq!((&*after.state, after.restarts, after.pid), ("running", 1, broker.worker()));
        assert_ne!(after.pid, before.pid);
        assert_eq!(&*after.last_ending, "was killed by SIGTERM");
        drop(first);
        let (_second, mut worker) = setup.accept();
        let welcome = worker.hello();
        // Clients are not refused, and the worker itself is not allowed to do this.
        drop((waiting, TcpStream::connect("127.0.0.1:25").unwrap()));
        assert!(welcome.operations.iter().any(|name| &**name == "worker"));
        assert!(!welcome.operations.iter().any(|name| name.ends_with("-worker")), "{:?}", welcome.operations);
        assert_eq!(restart(&mut worker).unwrap_err().code, FaultCode::Denied);
        assert_eq!(signal(&mut worker, USER1).unwrap_err().code, FaultCode::Denied);
    });
}

#[test]
fn a_worker_that_ignores_the_stop_signal_is_killed_after_its_time_limit() {
    isolated(|host| {
        let command = r#"/bin/sh "-c" "trap '' TERM; while :; do sleep 1000; done""#;
        let broker = Broker::start(host, &config(command, "stop_timeout = 1"));
        let (mut peer, mut other) = (broker.peer(), broker.peer());
        let first = status(&mut peer).pid;
        // Two requests, one restart.
        let number = other.send(&RestartWorker {});
        let after = restart(&mut peer).unwrap();
        assert_eq!((after.restarts, &*after.last_ending), (1, "was killed by SIGKILL"));
        assert_ne!(after.pid, first);
        let frame = other.receive().unwrap();
        assert_eq!(frame.header.request, number);
        assert_eq!(frame.reply::<RestartWorker>().unwrap().0.pid, after.pid);
    });
}

#[test]
fn the_stop_signal_ends_the_worker_at_a_restart_and_at_the_end() {
    isolated(|host| {
        let mut broker = Broker::start(host, &config("/bin/sleep 1000", "stop_signal = usr1"));
        let after = restart(&mut broker.peer()).unwrap();
        assert_eq!(&*after.last_ending, "was killed by SIGUSR1");
        assert!(broker.terminate().success());
        broker.log.wait_for(&["the worker has exited", "was killed by SIGUSR1"]);
    });
}

#[test]
fn a_worker_that_waits_for_its_next_start_is_started_at_once_on_request() {
    isolated(|host| {
        let broker = Broker::start(host, &config("/bin/sleep 1000", "stable_after = 86400"));
        let mut peer = broker.peer();
        // Each run is a short one, so the pauses become longer.
        for _ in 0..4 {
            let pid = eventually("a worker", || signal(&mut peer, libc::SIGKILL as u8).ok());
            eventually("its end", || (status(&mut peer).pid != pid).then_some(()));
        }
        let waiting = await_state(&mut peer, "waiting");
        assert_eq!((waiting.pid, &*waiting.last_ending), (0, "was killed by SIGKILL"));
        assert!(waiting.next_start_ms <= 800, "{waiting:?}");
        let fault = signal(&mut peer, USER1).unwrap_err();
        assert_eq!((fault.code, &*fault.message), (FaultCode::NotFound, "no worker runs at the moment"));
        let running = restart(&mut peer).unwrap();
        assert_eq!((&*running.state, running.restarts), ("running", waiting.restarts + 1));
    });
}

#[test]
fn a_restart_is_possible_although_the_worker_is_not_restarted_by_itself() {
    isolated(|host| {
        let mut broker = Broker::start(host, &config("/bin/sleep 1000", "restart = false"));
        let mut peer = broker.peer();
        assert_eq!(restart(&mut peer).unwrap().restarts, 1);
        signal(&mut peer, libc::SIGKILL as u8).unwrap();
        assert_eq!(broker.wait_for_exit().code(), Some(69));
    });
}

#[test]
fn only_a_peer_that_is_allowed_restarts_or_signals_the_worker() {
    isolated(|host| {
        let broker = Broker::start(host, &config("/bin/sleep 1000", ""));
        let pid = status(&mut broker.peer()).pid;
        let mut allowed = Peer::of_user(3, 3);
        assert_eq!(signal(&mut allowed, libc::SIGCONT as u8), Ok(pid));
        let mut denied = Peer::of_user(5, 5);
        for fault in
            [signal(&mut denied, libc::SIGKILL as u8).unwrap_err(), restart(&mut denied).unwrap_err()]
        {
            assert_eq!(fault.code, FaultCode::Denied);
        }
        for number in [0, 65, u8::MAX] {
            let fault = signal(&mut allowed, number).unwrap_err();
            assert_eq!((fault.code, &*fault.remedy), (FaultCode::Invalid, "use a number from 1 to 64"));
        }
        // A real-time signal has a number and no name.
        assert_eq!(signal(&mut allowed, 40), Ok(pid));
        assert_eq!(&*await_restarted(&mut allowed, 1).last_ending, "was killed by signal 40");
    });
}

fn await_restarted(peer: &mut Peer, restarts: u32) -> WorkerStatus {
    eventually("a restart", || Some(status(peer)).filter(|status| status.restarts == restarts))
}

#[test]
fn a_process_that_a_signal_without_a_name_kills_is_noticed() {
    isolated(|host| {
        let broker = Broker::start(host, &config("/bin/sleep 1000", ""));
        let kill = |pid: u32| {
            run(Command::new("sh").arg("-c").arg(format!("kill -40 {pid}")), "dash");
        };
        kill(broker.worker());
        assert_eq!(&*await_restarted(&mut broker.peer(), 1).last_ending, "was killed by signal 40");
        kill(broker.reader());
        broker.log.wait_for(&["was killed by signal 40", "reader"]);
    });
}

#[test]
fn without_a_worker_the_requests_are_unsupported() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:2525" )"#));
        let mut peer = broker.peer();
        for fault in [
            peer.request(&WorkerRequest {}).unwrap_err(),
            restart(&mut peer).unwrap_err(),
            signal(&mut peer, USER1).unwrap_err(),
        ] {
            assert_eq!(fault.code, FaultCode::Unsupported);
            assert_eq!(&*fault.message, "the configuration of this broker has no worker");
        }
    });
}

#[test]
fn the_command_and_the_blocking_client_control_the_worker() {
    isolated(|host| {
        let broker = Broker::start(host, &config("/bin/sleep 1000", ""));
        let shown = command(host, &["worker", "status"]);
        assert!(shown.starts_with("running for ") && shown.contains(", restarts: 0"), "{shown}");
        let shown = command(host, &["worker", "restart"]);
        assert!(shown.contains("restarts: 1\nthe one before it was killed by SIGTERM"), "{shown}");
        let shown = command(host, &["worker", "signal", "cont"]);
        assert_eq!(shown, format!("sent signal 18 to process {}\n", broker.worker()));
        let value: serde_json::Value =
            serde_json::from_str(&command(host, &["worker", "status", "--json"])).unwrap();
        assert_eq!((&value["state"], &value["pid"]), (&"running".into(), &broker.worker().into()));
        let client = blocking::Client::open(Channel::connect(Path::new(SOCKET)).unwrap(), "test").unwrap();
        assert_eq!(client.signal_worker(libc::SIGCONT as u8).unwrap(), broker.worker());
        assert_eq!(client.restart_worker().unwrap().restarts, 2);
        assert_eq!(client.worker().unwrap().restarts, 2);
        // A worker that somebody else ends is restarted as always.
        broker_signal(broker.worker());
        assert_eq!(await_restarted(&mut broker.peer(), 3).restarts, 3);
    });
}

fn broker_signal(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
}

fn command(host: &Host, arguments: &[&str]) -> String {
    let mut command = Command::new(host.binary(binaries::CLIENT));
    run(command.args(["--socket", SOCKET]).args(arguments), "portreeve")
}
