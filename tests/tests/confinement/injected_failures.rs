//! Each step of the start fails in turn: the error names the step, the exit code is one of sysexits(3), the broker
//! never served, and nothing is left behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use portreeve_tests::kernel::command_denying;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{
    Host, StartupFailure, binaries, broker, eventually, isolated, process, resources, sample, startup_steps,
};

/// System calls that the kernel refuses, and the words that the error must contain: the step and the call.
const REFUSALS: &[(&str, &[&str])] = &[
    ("close_range=EPERM", &["descriptors", "close_range"]),
    ("prlimit64=EPERM", &["limits", "getrlimit RLIMIT_CORE"]),
    ("prctl:4=EPERM", &["limits", "PR_SET_DUMPABLE"]),
    ("keyctl:1=EPERM", &["session keyring", "KEYCTL_JOIN_SESSION_KEYRING"]),
    ("keyctl:1=EDQUOT", &["session keyring", "kernel.keys.maxkeys"]),
    ("bind=EPERM", &["broker.socket", "broker.sock", "bind"]),
    ("socketpair=EMFILE", &["launcher", "socketpair"]),
    ("clone=ENOMEM", &["launcher", "fork"]),
    ("prctl:36=EPERM", &["launcher", "PR_SET_CHILD_SUBREAPER"]),
    ("setsid=EPERM", &["confining the worker", "setsid"]),
    ("chroot=EPERM", &["confining the worker", "chroot to security.chroot"]),
    ("setgroups=EPERM", &["confining the worker", "setgroups"]),
    ("setresgid=EPERM", &["confining the worker", "setresgid"]),
    ("setresuid=EPERM", &["confining the worker", "setresuid"]),
    ("prctl:24=EPERM", &["capabilities", "PR_CAPBSET_DROP"]),
    ("prctl:28=EPERM", &["capabilities", "PR_SET_SECUREBITS"]),
    ("prctl:47=EPERM", &["capabilities", "PR_CAP_AMBIENT_CLEAR_ALL"]),
    ("prctl:38=EPERM", &["capabilities", "PR_SET_NO_NEW_PRIVS"]),
    ("capset=EPERM", &["capabilities", "capset"]),
    ("unshare=EPERM", &["empty root", "CLONE_NEWNS", "CAP_SYS_ADMIN"]),
    ("mount=EPERM", &["empty root", "mount"]),
    ("open_tree=EPERM", &["empty root", "open_tree"]),
    ("fsopen=EPERM", &["empty root", "fsopen"]),
    ("fsmount=EPERM", &["empty root", "fsmount"]),
    ("move_mount=EPERM", &["empty root", "move_mount"]),
    ("pivot_root=EPERM", &["empty root", "pivot_root"]),
    ("umount2=EPERM", &["empty root", "umount2"]),
    ("landlock_add_rule=EINVAL", &["landlock"]),
    ("landlock_restrict_self=EPERM", &["landlock"]),
    ("seccomp=EPERM", &["seccomp", "probing"]),
    ("epoll_create1=EMFILE", &["runtime", "epoll_create"]),
];

/// A configuration that uses every step of a start: a worker in a chroot, a control socket, listeners of both kinds.
fn everything(host: &Host) -> (WorkerSetup, String) {
    let setup = WorkerSetup::new(host, "chroot");
    fs::create_dir(host.path("sockets")).unwrap();
    let rest = sample::socket(r#"( "127.0.0.1:25" )"#).replace("broker.sock", "sockets/broker.sock");
    let rest = rest
        + "ESMTP_Listener { Listen \"127.0.0.1:2525\" {} Listen \"/run/host/sockets/static.sock\" {} }\n";
    let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest);
    (setup, text)
}

/// Everything on the host that a broker could leave behind.
fn traces(host: &Host) -> (BTreeSet<String>, String, String, Vec<u32>) {
    let entries = fs::read_dir(host.path("sockets")).unwrap();
    let files = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    let listening = format!("{:?}", resources::tcp_listeners());
    (files, listening, fs::read_to_string("/proc/self/mountinfo").unwrap(), process::other_processes())
}

/// Starts a broker that must fail, and checks that it leaves nothing behind.
#[track_caller]
fn fails(host: &Host, mut command: Command) -> StartupFailure {
    let address = host.path("notify.sock");
    let _ = fs::remove_file(&address);
    let notify = UnixDatagram::bind(&address).unwrap();
    notify.set_nonblocking(true).unwrap();
    let before = traces(host);
    command.env("NOTIFY_SOCKET", &address).stdin(Stdio::null());
    let refusal = StartupFailure::of_command(command);
    eventually("nothing of the broker", || (traces(host) == before).then_some(()));
    let mut packet = [0; 64];
    while let Ok(length) = notify.recv(&mut packet) {
        assert!(!packet[..length].starts_with(b"READY"), "the broker reported READY: {}", refusal.message);
    }
    refusal
}

#[test]
fn every_start_step_that_fails_is_named_and_leaves_nothing_behind() {
    isolated(|host| {
        let (_setup, text) = everything(host);
        let config = broker::config(host, &text);
        for step in startup_steps::START {
            let mut command = Command::new(host.binary(binaries::HOSTILE_BROKER));
            command.arg("--config").arg(&config).args(["--fail", step]);
            let refusal = fails(host, command);
            let message = &refusal.message;
            assert_eq!(refusal.code, Some(71), "{step}: {message}");
            let line = message.lines().last().unwrap_or_default();
            assert!(line.starts_with("portreeved: "), "{step}: {message}");
            assert!(line.contains(&format!("{step}: it was made to fail")), "{step}: {message}");
        }
    });
}

#[test]
fn every_refused_system_call_is_named_and_leaves_nothing_behind() {
    isolated(|host| {
        let (_setup, text) = everything(host);
        let config = broker::config(host, &text);
        for (refused, words) in REFUSALS {
            let refusal = fails(host, command_denying(host, &[refused], binaries::BROKER, &config));
            let message = &refusal.message;
            assert!(
                matches!(refusal.code, Some(69 | 71 | 73 | 77)),
                "{refused}: {:?} {message}",
                refusal.code
            );
            let line = message.lines().last().unwrap_or_default();
            assert!(line.starts_with("portreeved: "), "{refused}: {message}");
            for word in *words {
                assert!(line.contains(word), "{refused}: {word:?} is not in: {message}");
            }
        }
    });
}

#[test]
fn the_list_of_steps_matches_the_source() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../broker/src");
    let mut named = Vec::new();
    let mut folders = vec![source];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(path).unwrap();
                let calls = ["inject::point(\"", "inject::lock(\""];
                let names = calls.into_iter().flat_map(|call| text.split(call).skip(1));
                named.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
    named.sort_unstable();
    let mut steps: Vec<&str> = startup_steps::START.iter().chain(startup_steps::TAKEOVER).copied().collect();
    steps.sort_unstable();
    assert_eq!(named, steps);
}
