//! Another program of root exhausts the kernel's limit of descriptors in flight: everything that sends sockets waits, says
//! why, and continues. Each broker here has a low limit of open files, which is also its limit of descriptors in flight.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use portreeve_protocol::FaultCode;
use portreeve_protocol::channel;
use portreeve_protocol::frame::MAX_DESCRIPTORS;
use portreeve_tests::broker::{self, LOG};
use portreeve_tests::peer::listen;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, binaries, eventually, exclusive, sample};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// The limit of open files of the brokers.
const LIMIT: usize = 1100;
/// The words of the line while the state lasts.
const LASTS: &str = "user 0 has too many descriptors in flight on this host";
/// The words of the line at its end.
const ENDED: &str = "no longer has too many descriptors in flight";

/// More descriptors of user 0 in flight than a broker's limit, until it is dropped.
struct Exhaustion(#[allow(dead_code)] UnixDatagram);

impl Exhaustion {
    fn begin() -> Self {
        let (sender, receiver) = channel::pair().unwrap();
        for _ in 0..=LIMIT / MAX_DESCRIPTORS + 1 {
            channel::send(&sender, b"?", &[sender.as_fd(); MAX_DESCRIPTORS]).unwrap();
        }
        Self(receiver)
    }
}

/// The command that starts a broker with the low limit. It logs to a file.
fn limited(host: &Host, text: &str) -> Command {
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--nofile={LIMIT}:{LIMIT}"))
        .arg(host.binary(binaries::BROKER))
        .arg("--config")
        .arg(broker::config(host, text));
    command
}

fn control(quotas: &str) -> String {
    format!("{}broker {{ {quotas} }}", sample::control(r#"( "127.0.0.1:1-65535" )"#))
}

fn with_worker(setup: &WorkerSetup) -> String {
    let rest = format!("{} worker {{ stable_after = 0 }}", sample::socket(r#"( "127.0.0.1:1-65535" )"#));
    sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest)
}

#[test]
fn a_reply_waits_until_the_limit_is_no_longer_exceeded_and_the_log_says_so_once() {
    exclusive(|host| {
        let broker = Broker::start_command(host, limited(host, &control("")));
        let (mut peer, mut bystander) = (broker.peer(), broker.peer());
        let exhaustion = Exhaustion::begin();
        let numbers = [25, 26, 27].map(|port| peer.send(&listen(&format!("127.0.0.1:{port}"))));
        let line = broker.log.wait_for(&[LASTS]);
        assert!(line.contains("WARN"), "{line}");
        let warnings = bystander.status().warnings;
        assert!(warnings.iter().any(|warning| warning.contains("ETOOMANYREFS")), "{warnings:?}");
        drop(exhaustion);
        for number in numbers {
            let frame = peer.receive().unwrap();
            assert_eq!((frame.header.request, frame.descriptors.len()), (number, 1));
        }
        broker.log.wait_for(&[ENDED]);
        assert!(!bystander.status().warnings.iter().any(|warning| warning.contains("ETOOMANYREFS")));
        let lines = broker.log.lines();
        assert_eq!(lines.iter().filter(|line| line.contains(LASTS)).count(), 1, "{lines:#?}");
    });
}

#[test]
fn a_reply_that_waits_too_long_is_a_fault_that_does_not_blame_the_peer() {
    exclusive(|host| {
        let broker = Broker::start_command(host, limited(host, &control("unread_timeout = 2")));
        let mut peer = broker.peer();
        let exhaustion = Exhaustion::begin();
        let fault = peer.listen("127.0.0.1:25").unwrap_err();
        let errno = Errno::TOOMANYREFS.raw_os_error().unsigned_abs();
        assert_eq!((fault.code, fault.errno), (FaultCode::Busy, errno), "{fault}");
        assert!(fault.message.contains("user 0 has too many descriptors in flight"), "{fault}");
        broker.log.wait_for(&["refused", "listen", "127.0.0.1:25", "too many descriptors in flight"]);
        assert!(
            !broker
                .log
                .lines()
                .iter()
                .any(|line| line.contains("audit: done") && line.contains("127.0.0.1:25"))
        );
        peer.ping();
        drop(exhaustion);
        peer.listen("127.0.0.1:25").unwrap();
    });
}

#[test]
fn a_worker_is_restarted_once_its_listeners_can_be_sent() {
    exclusive(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let mut broker = Broker::start_command(host, limited(host, &with_worker(&setup)));
        let (scripted, worker) = setup.accept();
        let first = broker.worker();
        let exhaustion = Exhaustion::begin();
        kill_process(Pid::from_raw(first.cast_signed()).unwrap(), Signal::KILL).unwrap();
        drop((scripted, worker));
        broker.log.wait_for(&[LASTS]);
        broker.peer().ping();
        drop(exhaustion);
        let (scripted, mut worker) = setup.accept();
        worker.hello();
        assert_ne!(broker.worker(), first);

        // A broker that waits to start its worker can be stopped.
        let exhaustion = Exhaustion::begin();
        kill_process(Pid::from_raw(broker.worker().cast_signed()).unwrap(), Signal::KILL).unwrap();
        drop((scripted, worker));
        broker.log.wait_for(&["the worker has exited"]);
        eventually("the end of the worker", || {
            broker.peer().status().processes.iter().all(|process| &*process.role != "worker").then_some(())
        });
        assert!(broker.terminate().success());
        drop(exhaustion);
    });
}

/// Ends the exhaustion once the broker's log file says that it lasts.
fn end_once_it_is_reported(host: &Host, exhaustion: Exhaustion, action: impl FnOnce() -> Broker) -> Broker {
    let log = host.path(LOG);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            eventually("the line in the log", || {
                fs::read_to_string(&log).is_ok_and(|text| text.contains(LASTS)).then_some(())
            });
            drop(exhaustion);
        });
        action()
    })
}

fn logging_to_file(host: &Host, mut command: Command) -> Broker {
    let log = fs::File::options().create(true).append(true).open(host.path(LOG)).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    Broker::launch(host, command)
}

#[test]
fn a_new_broker_starts_once_the_limit_is_no_longer_exceeded() {
    exclusive(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let command = limited(host, &with_worker(&setup));
        let broker = end_once_it_is_reported(host, Exhaustion::begin(), || logging_to_file(host, command));
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        broker.peer().ping();
    });
}

#[test]
fn a_takeover_waits_until_the_limit_is_no_longer_exceeded() {
    exclusive(|host| {
        let text = control("");
        let mut first = logging_to_file(host, limited(host, &text));
        let mut peer = first.peer();
        let (id, _socket) = peer.listen("127.0.0.1:25").unwrap();
        let mut command = limited(host, &text);
        command.arg("--takeover");
        let second = end_once_it_is_reported(host, Exhaustion::begin(), || logging_to_file(host, command));
        assert!(first.wait_for_exit().success());
        assert_eq!(second.peer().listen("127.0.0.1:25").unwrap().0, id);
    });
}

#[test]
fn a_takeover_that_waits_too_long_names_the_cause_and_the_running_broker_still_serves() {
    exclusive(|host| {
        let text = control("unread_timeout = 1");
        let first = Broker::start_command(host, limited(host, &text));
        let (_id, _socket) = first.peer().listen("127.0.0.1:25").unwrap();
        let exhaustion = Exhaustion::begin();
        let mut command = limited(host, &text);
        command.arg("--takeover");
        let failure = portreeve_tests::StartupFailure::of_command(command);
        assert!(failure.message.contains("user 0 has too many descriptors in flight"), "{failure:?}");
        drop(exhaustion);
        first.peer().listen("127.0.0.1:26").unwrap();
    });
}
