//! Kernels without Landlock or system call filters: the operator is warned, a required lock is an error, and everything
//! else works.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use portreeve_protocol::{FaultCode, channel};
use portreeve_tests::chroot::WORKER;
use portreeve_tests::kernel::{landlock_version, refusing};
use portreeve_tests::process::{self, Status};
use portreeve_tests::puppet::Stage;
use portreeve_tests::refusal::exit;
use portreeve_tests::{Broker, Host, Kernel, Refusal, census, isolated, sample};
use portreeve_tests::{binaries, broker};
use rustix::process::{Pid, Signal, kill_process};

const NET_BIND_SERVICE: u64 = 1 << 10;

/// The first version of Landlock with everything that the broker uses: that of Linux 6.12.
const COMPLETE_LANDLOCK: u32 = 6;

fn start(host: &Host, kernel: Kernel, text: &str) -> Broker {
    Broker::start_command(host, kernel.command(host, &broker::config(host, text)))
}

/// A short run of everything that a broker and its worker do, on a kernel that lacks something.
fn serves(host: &Host, kernel: Kernel) {
    let stage = Stage::new(host, "chroot");
    let socket = sample::socket(r#"( "127.0.0.1:25" )"#);
    let text = sample::worker(&stage.chroot, "( /run/host/bin/puppet )", &socket);
    let broker = start(host, kernel, &text);
    let (mut puppet, _channel) = stage.enter();
    let before = broker.census();

    is_confined(&broker, kernel);
    let answers = puppet.tell("attempts");
    assert!(!answers.contains("=done"), "{answers}");
    reports_missing_locks(&broker, kernel);

    let mut peer = broker.peer();
    let (id, socket) = peer.listen("127.0.0.1:25").unwrap();
    serves_on(socket);
    assert_eq!(peer.listen("127.0.0.1:26").unwrap_err().code, FaultCode::Denied);
    peer.stop(&[id]);
    assert!(TcpStream::connect("127.0.0.1:25").is_err());
    assert_eq!(census::listening(), []);

    let mut malicious = broker.peer();
    channel::send_bare(&malicious.channel, b"nothing that is a frame").unwrap();
    assert!(malicious.is_cut_off());
    peer.ping();
    drop((peer, malicious));
    broker.await_no_more_than(&before);

    let first = broker.worker();
    kill_process(Pid::from_raw(first.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let (_second, _channel) = stage.enter();
    assert_ne!(broker.worker(), first);
}

fn serves_on(socket: OwnedFd) {
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(false).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    listener.accept().unwrap().0.write_all(b"220 ready\r\n").unwrap();
    let mut greeting = String::new();
    client.read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "220 ready\r\n");
}

fn is_confined(broker: &Broker, kernel: Kernel) {
    let without_filter = |status: Status| Status { seccomp: 0, ..status };
    for thread in process::threads(broker.pid()) {
        let filters: u32 = process::status_field(broker.pid(), "Seccomp_filters").parse().unwrap();
        // The broker's filter is two programs. Each filter that simulates the kernel is one.
        let own = if matches!(kernel, Kernel::Whole | Kernel::WithoutLandlock) { 2 } else { 0 };
        assert_eq!(filters as usize, kernel.refusals().len() + own, "{kernel:?}");
        let expected = Status {
            uid: vec![0; 4],
            gid: vec![0; 4],
            permitted: NET_BIND_SERVICE,
            effective: NET_BIND_SERVICE,
            bounding: NET_BIND_SERVICE,
            no_new_privs: true,
            ..Status::default()
        };
        assert_eq!(without_filter(thread), expected);
    }
    for pid in [broker.launcher(), broker.worker()] {
        let expected =
            Status { uid: vec![WORKER; 4], gid: vec![WORKER; 4], no_new_privs: true, ..Status::default() };
        process::threads(pid).into_iter().for_each(|thread| assert_eq!(without_filter(thread), expected));
    }
}

/// Asserts that `status` and the log name exactly the locks that the kernel lacks.
fn reports_missing_locks(broker: &Broker, kernel: Kernel) {
    let status = broker.peer().status();
    let warnings = format!("{:?}", status.warnings);
    let locks = format!("{:?}", status.processes[0].locks);
    let lacks = |what: &str| {
        let named = warnings.contains(what);
        assert_eq!(named, locks.contains(what), "{warnings} {locks}");
        if named {
            broker.log.wait_for(&["WARN", what]);
        }
        named
    };
    assert_eq!(lacks("no Landlock"), matches!(kernel, Kernel::WithoutLandlock | Kernel::WithoutEither));
    assert_eq!(lacks("no seccomp"), matches!(kernel, Kernel::WithoutSeccomp | Kernel::WithoutEither));
}

#[test]
fn everything_works_on_a_complete_kernel() {
    isolated(|host| serves(host, Kernel::Whole));
}

#[test]
fn everything_works_without_landlock_and_the_operator_is_warned() {
    isolated(|host| serves(host, Kernel::WithoutLandlock));
}

#[test]
fn everything_works_without_seccomp_and_the_operator_is_warned() {
    isolated(|host| serves(host, Kernel::WithoutSeccomp));
}

#[test]
fn everything_works_without_landlock_and_seccomp_and_the_operator_is_warned() {
    isolated(|host| serves(host, Kernel::WithoutEither));
}

#[test]
fn required_landlock_is_an_error_on_a_kernel_without_it() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:25" )"#) + "broker { require_landlock = true }\n";
        let config = broker::config(host, &text);
        for kernel in [Kernel::WithoutLandlock, Kernel::WithoutEither] {
            let refusal = Refusal::of_command(kernel.command(host, &config));
            refusal.says(exit::UNAVAILABLE, &["no Landlock", "require_landlock", "lsm="]);
        }
        if landlock_version() < COMPLETE_LANDLOCK {
            let refusal = Refusal::of_command(Kernel::WithoutSeccomp.command(host, &config));
            let version = format!("Landlock ABI {} does not restrict", landlock_version());
            refusal.says(exit::UNAVAILABLE, &[&version, "require_landlock"]);
            return;
        }
        let broker = start(host, Kernel::WithoutSeccomp, &text);
        broker.peer().ping();
    });
}

#[test]
fn the_broker_starts_under_an_existing_filter() {
    isolated(|host| {
        let stage = Stage::new(host, "chroot");
        let text = sample::worker(&stage.chroot, "( /run/host/bin/puppet )", "");
        let config = broker::config(host, &text);
        // As in a container whose filter refuses calls that the broker never makes.
        let command = refusing(host, &["keyctl=EPERM"], binaries::BROKER, &config);
        let broker = Broker::start_command(host, command);
        let (_puppet, mut channel) = stage.enter();
        channel.hello();
        assert_eq!(process::status_field(broker.worker(), "Seccomp"), "2");
    });
}
