//! The privileges that the broker retains and those that the worker keeps, as the kernel reports them.

use std::path::Path;

use portreeve_protocol::FaultCode;
use portreeve_tests::broker::{self, SOCKET};
use portreeve_tests::chroot::WORKER;
use portreeve_tests::process::{self, Status};
use portreeve_tests::sample::{FIRST_SECURITY, SECOND_SECURITY};
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, Peer, StartupFailure, isolated, sample};

const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const SYS_RESOURCE: u64 = 1 << 24;

const ECUSER: u32 = 4321;

/// Adds to a security scope a chroot and a scripted worker in it.
fn with_worker(security: &str) -> String {
    format!(
        "{security}\nsecurity {{ chroot = /run/host/chroot }}\nworker {{ command = ( /run/host/bin/scripted_worker ) }}\n"
    )
}

fn broker_status(retained: u64) -> Status {
    Status {
        uid: vec![0; 4],
        gid: vec![0; 4],
        permitted: retained,
        effective: retained,
        bounding: retained,
        no_new_privs: true,
        ..Status::default()
    }
}

fn worker_status(id: u32, groups: &[u32]) -> Status {
    Status {
        uid: vec![id; 4],
        gid: vec![id; 4],
        groups: groups.to_vec(),
        no_new_privs: true,
        ..Status::default()
    }
}

/// Asserts that every thread of the process has this status, with or without a seccomp filter.
#[track_caller]
fn assert_status(what: &str, pid: u32, expected: &Status) {
    for thread in process::threads(pid) {
        assert_eq!(Status { seccomp: 0, ..thread }, *expected, "{what}");
    }
}

/// Starts a broker and a scripted worker, and compares what the kernel reports for broker, launcher and worker.
#[track_caller]
fn confined(host: &Host, security: &str, retained: u64, worker: &Status) -> Broker {
    host.add_user("ecuser", ECUSER);
    let setup = WorkerSetup::new(host, "chroot");
    let broker = Broker::start(host, &with_worker(security));
    let (mut scripted, mut channel) = setup.accept();
    assert_status("broker", broker.pid(), &broker_status(retained));
    assert_status("launcher", broker.launcher(), worker);
    assert_status("worker", broker.worker(), worker);
    assert_eq!(process::root(broker.worker()), setup.chroot.path);
    assert_eq!(process::root(broker.launcher()), setup.chroot.path);
    let welcome = channel.hello();
    assert_eq!(welcome.capabilities, retained);
    assert_eq!(scripted.run("descriptors"), "0 1 2 3:channel");
    broker
}

#[test]
fn the_first_sample_retains_one_capability_and_its_worker_none() {
    isolated(|host| {
        confined(host, FIRST_SECURITY, NET_BIND_SERVICE, &worker_status(ECUSER, &[]));
    });
}

#[test]
fn the_second_sample_retains_four_capabilities_or_names_the_missing_one() {
    isolated(|host| {
        let held = &process::threads(std::process::id())[0];
        if held.bounding & SYS_RESOURCE != 0 {
            let retained = NET_ADMIN | NET_BIND_SERVICE | NET_RAW | SYS_RESOURCE;
            confined(host, SECOND_SECURITY, retained, &worker_status(ECUSER, &[]));
        } else {
            host.add_user("ecuser", ECUSER);
            let refusal = StartupFailure::of(host, SECOND_SECURITY);
            assert_eq!(refusal.code, Some(77), "{}", refusal.message);
            assert!(refusal.message.contains("cap_sys_resource"), "{}", refusal.message);
            let without = SECOND_SECURITY.replace(" cap_sys_resource+ep", "");
            confined(host, &without, NET_ADMIN | NET_BIND_SERVICE | NET_RAW, &worker_status(ECUSER, &[]));
        }
    });
}

#[test]
fn without_configured_capabilities_the_broker_retains_none() {
    isolated(|host| {
        let none = "security { user = ecuser group = ecuser }";
        confined(host, none, 0, &worker_status(ECUSER, &[]));
    });
}

#[test]
fn a_worker_with_user_root_has_no_capability_and_the_operator_is_warned() {
    isolated(|host| {
        let root = "security { user = root group = root capabilities = \"cap_net_bind_service+ep\" }";
        let broker = confined(host, root, NET_BIND_SERVICE, &worker_status(0, &[]));
        broker.log.wait_for(&["WARN", "security.user is root"]);
    });
}

#[test]
fn the_worker_has_its_supplemental_groups_and_no_others() {
    isolated(|host| {
        host.add_group("sslcerts", 4400);
        let groups = "security { user = ecuser group = ecuser supplemental_groups = ( sslcerts 4300 ) }";
        confined(host, groups, 0, &worker_status(ECUSER, &[4300, 4400]));
    });
}

#[test]
fn an_effective_flag_alone_is_rejected_and_an_inheritable_one_is_retained() {
    isolated(|host| {
        let config = |capabilities: &str| {
            let text =
                format!("security {{ user = nobody group = nogroup capabilities = \"{capabilities}\" }}");
            broker::config(host, &text)
        };
        let refusal = StartupFailure::of_command(broker::command(host, &config("cap_net_raw=e")));
        assert_eq!(refusal.code, Some(78), "{}", refusal.message);
        assert!(refusal.message.contains("cap_net_raw"), "{}", refusal.message);
        let path = config("cap_net_raw+eip cap_chown+p");
        let broker = Broker::start_command(host, broker::command(host, &path));
        let expected = Status {
            inheritable: NET_RAW,
            permitted: NET_RAW | 1,
            bounding: NET_RAW | 1,
            ..broker_status(NET_RAW)
        };
        assert_status("broker", broker.pid(), &expected);
    });
}

#[test]
fn a_worker_cannot_regain_privileges() {
    isolated(|host| {
        for user in ["nobody", "root"] {
            let setup = WorkerSetup::new(host, &format!("chroot-{user}"));
            let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", "");
            let text = match user {
                "root" => {
                    text.replace("user = nobody", "user = root").replace("group = nogroup", "group = root")
                }
                _ => text,
            };
            let broker = Broker::start(host, &text);
            let (mut scripted, _channel) = setup.accept();
            let answers = scripted.run("attempts");
            for (attempt, answer) in answers.split(' ').map(|word| word.split_once('=').unwrap()) {
                // Setting an id that the process already has gains nothing, and root has only its own ids.
                let harmless = user == "root" && attempt.starts_with("set") && attempt.contains("id");
                assert!(answer != "done" || harmless, "{user} could {attempt}: {answers}");
            }
            assert_status(
                "worker",
                broker.worker(),
                &worker_status(if user == "root" { 0 } else { WORKER }, &[]),
            );
        }
    });
}

#[test]
fn a_worker_inherits_its_channel_and_listeners_and_its_children_neither() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let listener = "ESMTP_Listener { Listen \"127.0.0.1:25\" {} }";
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", listener);
        let _broker = Broker::start(host, &text);
        let (mut scripted, _channel) = setup.accept();
        assert_eq!(scripted.run("descriptors"), "0 1 2 3:socket 4:channel");
        assert_eq!(scripted.run("descriptors of a child"), "0 1 2");
    });
}

#[test]
fn a_worker_has_only_the_configured_environment() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let text = sample::worker(
            &setup.chroot,
            "( /run/host/bin/scripted_worker )\nenvironment = [ TZ = \"UTC\" ]",
            "",
        );
        let config = broker::config(host, &text);
        let mut command = broker::command(host, &config);
        command.env("SECRET", "of the invoking user");
        let _broker = Broker::start_command(host, command);
        let (mut scripted, _channel) = setup.accept();
        assert_eq!(scripted.run("environment"), "TZ=UTC PORTREEVE_CHANNEL=3");
    });
}

#[test]
fn a_user_without_permission_gets_a_fault_and_leaves_an_audit_line() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:25" )"#).replace("peer nobody", "peer daemon");
        let broker = Broker::start(host, &text);
        let mut stranger = Peer::connect_as(Path::new(SOCKET), WORKER, WORKER).unwrap();
        let hello = portreeve_protocol::message::Hello { client: Default::default(), features: 0 };
        let fault = match stranger.request(&hello) {
            Err(fault) => fault,
            Ok(_) => stranger.listen("127.0.0.1:25").unwrap_err(),
        };
        assert_eq!(fault.code, FaultCode::Denied, "{fault}");
        assert!(!fault.remedy.is_empty(), "{fault:?}");
        broker.log.wait_for(&["audit", "65534", "denied"]);
        broker.peer().listen("127.0.0.1:25").unwrap();
    });
}

#[test]
fn the_mode_of_the_control_socket_excludes_other_users() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:25" )"#).replace("socket_mode = 0666", "");
        let broker = Broker::start(host, &text);
        let refused = Peer::connect_as(Path::new(SOCKET), WORKER, WORKER).map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        broker.peer().ping();
    });
}
