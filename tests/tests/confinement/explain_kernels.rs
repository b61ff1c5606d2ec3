//! Kernels and containers with fewer or more features: the processes hold what `explain` prints there.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use portreeve_protocol::FaultCode;
use portreeve_tests::explain::{assert_process_matches, assert_status_matches, json, role};
use portreeve_tests::kernel::landlock_abi;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, StartupFailure, binaries, broker, isolated, sample};
use serde_json::Value;

/// Runs the command under a system call filter, as in a container. The filter allows every call except those in
/// `unknown`, for which it returns ENOSYS, as a kernel without them does.
fn under_a_filter(command: &mut Command, unknown: &[libc::c_long]) {
    let statement = |code: u32, k: u32, jt: u8| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    // The call's number is the first field of struct seccomp_data.
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (at, number) in unknown.iter().enumerate() {
        let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        filter.push(statement(
            jump,
            u32::try_from(*number).unwrap(),
            u8::try_from(unknown.len() - at).unwrap(),
        ));
    }
    filter.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    filter.push(statement(
        libc::BPF_RET | libc::BPF_K,
        libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
        0,
    ));
    let install = move || {
        let len = u16::try_from(filter.len()).unwrap();
        let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
        // SAFETY: the program points at the number of instructions that it declares, and they outlive the call.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(install) };
}

/// Explains and starts a configuration under a filter, compares, and returns the explanation.
fn under_a_filter_is_as_explained(host: &Host, unknown: &[libc::c_long]) -> Value {
    let mut explain = Command::new(host.binary(binaries::BROKER));
    explain.args(["explain", "--json"]);
    is_as_explained(host, unknown, explain, Command::new(host.binary(binaries::BROKER)))
}

fn is_as_explained(
    host: &Host,
    unknown: &[libc::c_long],
    mut explain: Command,
    mut command: Command,
) -> Value {
    let setup = WorkerSetup::new(host, "chroot");
    let config =
        broker::config(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", ""));
    under_a_filter(explain.arg(&config), unknown);
    let explained = json(&explain.output().unwrap());
    command.arg("--config").arg(&config).stdin(Stdio::null());
    under_a_filter(&mut command, unknown);
    let broker = Broker::start_command(host, command);
    let (_scripted, mut channel) = setup.accept();
    assert_process_matches(&explained, "broker", broker.pid());
    assert_process_matches(&explained, "launcher", broker.launcher());
    assert_process_matches(&explained, "worker", broker.worker());
    assert_process_matches(&explained, "reader", broker.reader());
    assert_eq!(role(&explained, "worker")["seccomp"]["mode"], 2);
    channel.hello();
    assert_status_matches(&explained, &mut channel);
    explained
}

#[test]
fn under_the_filter_of_a_container_the_processes_are_as_explained() {
    isolated(|host| {
        let explained = under_a_filter_is_as_explained(host, &[]);
        let lacking: Vec<&str> =
            LANDLOCK.iter().filter(|row| row.0 > landlock_abi()).map(|row| row.1).collect();
        let sentence = format!("Landlock ABI {} does not restrict {}", landlock_abi(), lacking.join(", "));
        let expected = if lacking.is_empty() { vec![] } else { vec![sentence] };
        assert_eq!(role(&explained, "broker")["lacking"], serde_json::json!(expected));
    });
}

/// What each version of Landlock added, as the broker names it; see landlock(7).
const LANDLOCK: [(u32, &str); 5] = [
    (2, "moving files between directories (Linux 5.19)"),
    (3, "truncating files (Linux 6.2)"),
    (4, "binding and connecting TCP (Linux 6.7)"),
    (5, "ioctl on devices (Linux 6.10)"),
    (6, "signals and abstract Unix sockets (Linux 6.12)"),
];

#[test]
fn an_old_landlock_is_reported_and_the_policy_still_limits_tcp() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let mut peer = broker.peer();
        let status = peer.status();
        let locks = format!("{:?}", status.processes[0].locks);
        let version = landlock_abi();
        let in_part = locks.contains(&format!("Landlock ABI {version}, partially enforced"));
        assert_eq!(in_part, (1..6).contains(&version), "{locks}");
        let warned = status.warnings.iter().any(|warning| warning.contains("binding and connecting TCP"));
        assert_eq!(warned, (1..4).contains(&version), "{status:?}");
        peer.listen("127.0.0.1:25").unwrap();
        assert_eq!(peer.listen("127.0.0.1:26").unwrap_err().code, FaultCode::Denied);
    });
}

#[test]
fn a_missing_landlock_is_explained_and_is_an_error_if_required() {
    isolated(|host| {
        let landlock = [libc::SYS_landlock_create_ruleset];
        let explained = under_a_filter_is_as_explained(host, &landlock);
        let lacking = role(&explained, "broker")["lacking"][0].as_str().unwrap();
        let why = match std::fs::read_to_string("/sys/kernel/security/lsm") {
            Ok(modules) if modules.contains("landlock") => "the system call filter of a container",
            Ok(_) => "the kernel does not support it",
            Err(_) => "the kernel does not support it, or the system call filter of a container",
        };
        assert!(lacking.starts_with(&format!("no Landlock: {why}")), "{lacking}");

        let text = "security { user = nobody group = nogroup } broker { require_landlock = true }";
        let config = broker::config(host, text);
        let mut explain = Command::new(host.binary(binaries::BROKER));
        under_a_filter(explain.arg("explain").arg(&config), &landlock);
        let output = explain.output().unwrap();
        let mut start = broker::command(host, &config);
        under_a_filter(&mut start, &landlock);
        let refusal = StartupFailure::of_command(start);
        refusal.assert_reports(69, &["no Landlock", "require_landlock"]);
        assert_eq!(output.status.code(), refusal.code);
        assert_eq!(String::from_utf8_lossy(&output.stderr), refusal.message);
    });
}

#[test]
fn without_seccomp_the_processes_are_as_explained() {
    isolated(|host| {
        let broker = || Command::new(host.binary(binaries::HOSTILE_BROKER));
        let (mut explain, mut start) = (broker(), broker());
        explain.args(["--hide-seccomp", "--explain", "--config"]);
        start.arg("--hide-seccomp");
        let explained = is_as_explained(host, &[libc::SYS_seccomp], explain, start);
        // The limits of an older Landlock come first.
        let lacking = role(&explained, "broker")["lacking"].as_array().unwrap();
        let named = |one: &Value| one.as_str().unwrap().starts_with("no seccomp");
        assert!(lacking.iter().any(named), "{lacking:?}");
        assert_eq!(role(&explained, "broker")["seccomp"]["calls"], 0);
    });
}
