//! The Go module: its own tests with the race detector, also with the real broker, and its example as the worker.

use std::process::Command;

use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::Chroot;
use portreeve_tests::host::isolated_with_go;
use portreeve_tests::{Broker, Host, binaries, eventually, lan, process, resources, sample};
use rustix::process::{Pid, Signal, kill_process};

use crate::program::{Program, greeting, with_default_socket};

/// The module's tests as user nobody, without a privilege.
fn go_test(host: &Host, name: &str) -> Program {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"])
        .args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"])
        .arg(host.binary(binaries::GO_TESTS))
        .args(["-test.v", "-test.run", &format!("^{name}$")])
        .env("PORTREEVE_TEST_SOCKET", SOCKET)
        .env_remove("PORTREEVE_CHANNEL");
    let mut program = Program::start(command);
    assert_eq!(program.line(), format!("=== RUN   {name}"));
    program
}

/// Waits for the end of a test that must pass.
#[track_caller]
fn pass(mut program: Program, name: &str) {
    let mut output = Vec::new();
    loop {
        let line = program.line();
        if line == "PASS" {
            break;
        }
        let is_last = line == "FAIL";
        output.push(line);
        assert!(!is_last, "{}", output.join("\n"));
    }
    assert!(
        output.iter().any(|line| line.starts_with(&format!("--- PASS: {name} "))),
        "{}",
        output.join("\n")
    );
    program.end();
}

#[test]
fn the_modules_own_tests_pass() {
    let (_, program) = binaries::go_variables().next().unwrap();
    let mut command = Command::new(program);
    command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/go"))
        .env_remove("PORTREEVE_TEST_SOCKET");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.ends_with("PASS\n"), "{}: {text}", output.status);
}

fn broker(host: &Host) -> Broker {
    let listen =
        r#"( "*:25" "*:465" "*:587" "[::1]:25" "*:53/udp" "/run/host/mail.sock" "/run/host/mail.seq" )"#;
    Broker::start(host, &sample::control(listen))
}

fn passes_with_broker(host: &Host, name: &str) {
    let broker = broker(host);
    let before = broker.descriptors();
    pass(go_test(host, name), name);
    assert!(resources::tcp_listeners().is_empty());
    broker.await_no_leak(&before);
}

#[test]
fn listeners_of_every_kind_serve_and_stop() {
    isolated_with_go(|host| passes_with_broker(host, "TestBrokerListenersOfEveryKindServeAndStop"));
}

#[test]
fn refusals_have_their_code() {
    isolated_with_go(|host| passes_with_broker(host, "TestBrokerRefusalsHaveTheirCode"));
}

#[test]
fn a_session_is_shared_by_goroutines() {
    isolated_with_go(|host| passes_with_broker(host, "TestBrokerSessionIsSharedByGoroutines"));
}

#[test]
fn a_missing_socket_is_named() {
    isolated_with_go(|host| passes_with_broker(host, "TestBrokerWithoutASocketIsNamed"));
}

#[test]
fn the_end_of_the_broker_is_reported_and_leaves_the_sockets() {
    isolated_with_go(|host| {
        let name = "TestBrokerEndIsReportedAndLeavesTheSockets";
        let broker = broker(host);
        let mut program = go_test(host, name);
        assert_eq!(program.line(), "ready");
        broker.signal(Signal::KILL);
        pass(program, name);
    });
}

#[test]
fn the_example_serves_as_the_worker_in_an_empty_chroot() {
    isolated_with_go(|host| {
        let chroot = Chroot::new(host, "chroot");
        let permit = r#"broker { permit "greeter" { listen = ( "*:25" ) } }"#;
        let broker = Broker::start(host, &sample::worker(&chroot, "( /run/host/bin/go_greeter )", permit));
        eventually("the listener", || (!resources::tcp_listeners().is_empty()).then_some(()));
        for _ in 0..3 {
            assert_eq!(greeting(25), "220 ready\r\n");
            let worker = broker.worker();
            let status = process::threads(worker).remove(0);
            assert_eq!((status.permitted, status.bounding, status.no_new_privs), (0, 0, true));
            kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), Signal::KILL).unwrap();
        }
        assert_eq!(greeting(25), "220 ready\r\n");
    });
}

#[test]
fn a_lease_is_renewed_until_it_is_removed_or_lost() {
    isolated_with_go(|host| {
        let name = "TestBrokerLeaseIsRenewedUntilItIsRemovedOrLost";
        lan::create(&["far"]);
        let configuration =
            sample::addresses("").replace("{ allow = ( address )", "{ allow = ( address events )");
        let broker = Broker::start(host, &configuration);
        let mut program = go_test(host, name);
        assert_eq!(program.line(), "ready");
        broker.suspend();
        assert_eq!(program.line(), "lost");
        broker.signal(Signal::CONT);
        pass(program, name);
    });
}

#[test]
fn the_program_of_the_page_works() {
    isolated_with_go(|host| {
        let broker = Broker::start(host, &with_default_socket(&sample::control(r#"( "*:25" )"#)));
        let before = broker.descriptors();
        let program = Program::start(Command::new(host.binary(binaries::GO_README)));
        eventually("the listener", || (!resources::tcp_listeners().is_empty()).then_some(()));
        assert_eq!(greeting(25), "220 ready\r\n");
        program.end();
        assert!(resources::tcp_listeners().is_empty());
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_listener_that_the_broker_does_not_keep_ends_with_its_socket() {
    isolated_with_go(|host| {
        let name = "TestBrokerListenerThatIsNotKeptEndsWithItsSocket";
        let configuration =
            sample::control(r#"( "*:25" )"#).replace("listen = ( \"", "unkept = true listen = ( \"");
        let broker = Broker::start(host, &configuration);
        let before = broker.descriptors();
        let mut program = go_test(host, name);
        // In a user namespace, the kernel lets the broker keep no allowlist.
        match program.line().as_str() {
            "unsupported" => drop(broker.log.wait_for(&["is not enforced"])),
            line => assert_eq!(line, "ended"),
        }
        pass(program, name);
        broker.await_no_leak(&before);
    });
}
