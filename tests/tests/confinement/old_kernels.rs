//! Kernels without Landlock or system call filters: the operator is warned, a required lock is an error, and everything
//! else works.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use portreeve_protocol::{FaultCode, channel};
use portreeve_tests::chroot::WORKER;
use portreeve_tests::kernel::{command_denying, landlock_abi};
use portreeve_tests::process::{self, Status};
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::startup_failure::exit;
use portreeve_tests::{Broker, Host, Kernel, StartupFailure, isolated, resources, sample};
use portreeve_tests::{binaries, broker};
use rustix::process::{Pid, Signal, kill_process};

const NET_BIND_SERVICE: u64 = 1 << 10;

/// The first version of Landlock with everything that the broker uses: that of Linux 6.12.
const COMPLETE_LANDLOCK: u32 = 6;

fn start(host: &Host, kernel: Kernel, text: &str) -> Broker {
    Broker::start_command(host, kernel.command(host, &broker::config(host, text)))
}

/// A short run of everything that a broker and its worker do, on a kernel that lacks a feature.
fn serves(host: &Host, kernel: Kernel) {
    let setup = WorkerSetup::new(host, "chroot");
    let socket = sample::socket(r#"( "127.0.0.1:25" )"#);
    let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &socket);
    let broker = start(host, kernel, &text);
    let (mut scripted, _channel) = setup.accept();
    let before = broker.descriptors();

    is_confined(&broker, kernel);
    let answers = scripted.run("attempts");
    assert!(!answers.contains("=done"), "{answers}");
    reports_missing_locks(&broker, kernel);

    let mut peer = broker.peer();
    let (id, socket) = peer.listen("127.0.0.1:25").unwrap();
    serves_on(socket);
    assert_eq!(peer.listen("127.0.0.1:26").unwrap_err().code, FaultCode::Denied);
    peer.stop(&[id]);
    assert!(TcpStream::connect("127.0.0.1:25").is_err());
    assert_eq!(resources::tcp_listeners(), []);

    let mut malicious = broker.peer();
    channel::send_bytes(&malicious.channel, b"nothing that is a frame").unwrap();
    assert!(malicious.is_disconnected());
    peer.ping();
    drop((peer, malicious));
    broker.await_no_leak(&before);

    let first = broker.worker();
    kill_process(Pid::from_raw(first.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let (_second, _channel) = setup.accept();
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
        // The broker's filter is one program, and so is each filter that simulates the kernel.
        let own = usize::from(matches!(kernel, Kernel::Full | Kernel::WithoutLandlock));
        assert_eq!(filters as usize, kernel.denied_calls().len() + own, "{kernel:?}");
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
    assert_eq!(lacks("no Landlock"), matches!(kernel, Kernel::WithoutLandlock | Kernel::WithoutBoth));
    assert_eq!(lacks("no seccomp"), matches!(kernel, Kernel::WithoutSeccomp | Kernel::WithoutBoth));
}

#[test]
fn everything_works_on_a_complete_kernel() {
    isolated(|host| serves(host, Kernel::Full));
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
    isolated(|host| serves(host, Kernel::WithoutBoth));
}

#[test]
fn required_landlock_is_an_error_on_a_kernel_without_it() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:25" )"#) + "broker { require_landlock = true }\n";
        let config = broker::config(host, &text);
        for kernel in [Kernel::WithoutLandlock, Kernel::WithoutBoth] {
            let refusal = StartupFailure::of_command(kernel.command(host, &config));
            refusal.assert_reports(exit::UNAVAILABLE, &["no Landlock", "require_landlock", "lsm="]);
        }
        if landlock_abi() < COMPLETE_LANDLOCK {
            let refusal = StartupFailure::of_command(Kernel::WithoutSeccomp.command(host, &config));
            let version = format!("Landlock ABI {} does not restrict", landlock_abi());
            refusal.assert_reports(exit::UNAVAILABLE, &[&version, "require_landlock"]);
            return;
        }
        let broker = start(host, Kernel::WithoutSeccomp, &text);
        broker.peer().ping();
    });
}

#[test]
fn required_seccomp_is_an_error_on_a_kernel_without_it() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:25" )"#) + "broker { require_seccomp = true }\n";
        let config = broker::config(host, &text);
        for kernel in [Kernel::WithoutSeccomp, Kernel::WithoutBoth] {
            let refusal = StartupFailure::of_command(kernel.command(host, &config));
            refusal.assert_reports(exit::UNAVAILABLE, &["no seccomp", "require_seccomp", "CONFIG_SECCOMP"]);
        }
        start(host, Kernel::Full, &text).peer().ping();
    });
}

#[test]
fn a_filter_that_denies_seccomp_is_not_taken_for_a_kernel_without_it() {
    isolated(|host| {
        let config = broker::config(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        for denied in [&["seccomp=ENOSYS", "prctl:22=EINVAL"][..], &["seccomp=EINVAL"], &["seccomp=ENOSYS"]] {
            // Denied to the reader, which confines itself first, and to the broker.
            let command = command_denying(host, denied, binaries::BROKER, &config);
            let words = ["seccomp", "container", "allow seccomp(2)"];
            StartupFailure::of_command(command).assert_reports(exit::OS_ERROR, &words);
            let text = std::fs::read_to_string(&config).unwrap() + "broker { reload = false }\n";
            let without_reader = host.file("without-reader.conf", &text);
            let command = command_denying(host, denied, binaries::BROKER, &without_reader);
            StartupFailure::of_command(command).assert_reports(exit::OS_ERROR, &words);
        }
    });
}

#[test]
fn the_broker_starts_under_an_existing_filter() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", "");
        let config = broker::config(host, &text);
        // A container can have a filter that refuses calls which the broker never makes.
        let command = command_denying(host, &["keyctl=EPERM"], binaries::BROKER, &config);
        let broker = Broker::start_command(host, command);
        let (_scripted, mut channel) = setup.accept();
        channel.hello();
        assert_eq!(process::status_field(broker.worker(), "Seccomp"), "2");
    });
}
