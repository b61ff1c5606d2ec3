//! What `explain` prints is what the kernel then says of the processes.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use portreeve_tests::chroot::WORKER;
use portreeve_tests::process::{self, Status};
use portreeve_tests::puppet::Stage;
use portreeve_tests::sample::{FIRST_SECURITY, SECOND_SECURITY};
use portreeve_tests::{Broker, Host, Refusal, binaries, broker, census, isolated, sample};
use serde_json::Value;

const SYS_RESOURCE: u64 = 1 << 24;
const ECUSER: u32 = 4321;

fn run(host: &Host, arguments: &[&str]) -> Output {
    Command::new(host.binary(binaries::BROKER)).args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap().try_into().unwrap()).collect()
}

/// What `explain --json` says of a process, as the kernel would say it.
fn status(process: &Value) -> Status {
    let set = |name: &str| {
        let hex = process["capabilities"][name]["hex"].as_str().unwrap();
        u64::from_str_radix(hex, 16).unwrap()
    };
    Status {
        uid: numbers(&process["uid"]),
        gid: numbers(&process["gid"]),
        groups: numbers(&process["groups"]),
        inheritable: set("inheritable"),
        permitted: set("permitted"),
        effective: set("effective"),
        bounding: set("bounding"),
        ambient: set("ambient"),
        no_new_privs: process["no_new_privs"].as_bool().unwrap(),
        seccomp: process["seccomp"]["mode"].as_u64().unwrap().try_into().unwrap(),
    }
}

fn role<'v>(explained: &'v Value, role: &str) -> &'v Value {
    let processes = explained["processes"].as_array().unwrap();
    processes
        .iter()
        .find(|process| process["role"] == role)
        .unwrap_or_else(|| panic!("no {role}: {explained}"))
}

/// Both, a field a line.
fn side_by_side(explained: &Status, kernel: &Status) -> String {
    let lines = |status: &Status| -> Vec<String> {
        format!("{status:#?}").lines().map(|line| line.trim().to_owned()).collect()
    };
    let mut out = String::new();
    for (ours, theirs) in lines(explained).iter().zip(lines(kernel)) {
        writeln!(out, "{} {ours:<40} {theirs}", if *ours == theirs { ' ' } else { '!' }).unwrap();
    }
    out
}

/// Every thread of the process is as explained, and so are its root and its limits.
#[track_caller]
fn is_as_explained(explained: &Value, name: &str, pid: u32) {
    let process = role(explained, name);
    let expected = status(process);
    for thread in process::threads(pid) {
        assert!(
            thread == expected,
            "{name}: explained, and the kernel\n{}",
            side_by_side(&expected, &thread)
        );
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), process["limits"]["core"].as_str(), "{name}: {limits}");
    let root = format!("/proc/{pid}/root");
    match name {
        "broker" => {
            assert_eq!(process["root"], "empty, read-only");
            let reaches = process["root_reaches"].as_array().unwrap();
            let reaches: Vec<&Path> = reaches.iter().map(|path| Path::new(path.as_str().unwrap())).collect();
            for entry in std::fs::read_dir(&root).unwrap() {
                let path = Path::new("/").join(entry.unwrap().file_name());
                assert!(
                    reaches.iter().any(|reached| reached.starts_with(&path)),
                    "{path:?} not in {reaches:?}"
                );
            }
        }
        _ => assert_eq!(process["root"].as_str(), std::fs::read_link(&root).unwrap().to_str(), "{name}"),
    }
}

/// Explains a configuration, starts it, and compares.
#[track_caller]
fn comes_to_what_is_explained(host: &Host, security: &str) {
    host.add_user("ecuser", ECUSER);
    let stage = Stage::new(host, "chroot");
    let text = format!(
        "{security}\nsecurity {{ chroot = /run/host/chroot }}
        worker {{ command = ( /run/host/bin/puppet ) limit = [ nofile = 512 ] }}"
    );
    let config = broker::config(host, &text);
    let explained = json(&run(host, &["explain", config.to_str().unwrap(), "--json"]));
    let broker = Broker::start(host, &text);
    let (_puppet, mut channel) = stage.enter();
    is_as_explained(&explained, "broker", broker.pid());
    is_as_explained(&explained, "launcher", broker.launcher());
    is_as_explained(&explained, "worker", broker.worker());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", broker.worker())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), role(&explained, "worker")["limits"]["nofile"].as_str());

    // Landlock, seccomp and securebits are in no file of /proc: the broker tells what it verified.
    channel.hello();
    let published = channel.status();
    let locks: Vec<&str> = published.processes[0].locks.iter().map(|lock| lock.as_str()).collect();
    let foreseen = role(&explained, "broker")["locks"].as_array().unwrap();
    let foreseen: Vec<&str> = foreseen.iter().map(|lock| lock.as_str().unwrap()).collect();
    assert_eq!(foreseen, locks);
    let operations = explained["peers"][0]["operations"].as_array().unwrap();
    assert!(operations.iter().any(|operation| operation == "listen"), "{explained}");
}

#[test]
fn the_first_sample_comes_to_what_is_explained() {
    isolated(|host| comes_to_what_is_explained(host, FIRST_SECURITY));
}

#[test]
fn the_second_sample_comes_to_what_is_explained_or_to_a_named_error() {
    isolated(|host| {
        if process::threads(std::process::id())[0].bounding & SYS_RESOURCE != 0 {
            return comes_to_what_is_explained(host, SECOND_SECURITY);
        }
        host.add_user("ecuser", ECUSER);
        let config = broker::config(host, SECOND_SECURITY);
        let check = run(host, &["check", config.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&check.stderr);
        assert!(
            check.status.success() && said.contains("warning: cap_sys_resource cannot be retained"),
            "{said}"
        );
        let refusal = Refusal::of(host, SECOND_SECURITY);
        refusal.says(77, &["portreeve.conf:5:18", "cap_sys_resource", "bounding set"]);
        comes_to_what_is_explained(host, &SECOND_SECURITY.replace(" cap_sys_resource+ep", ""));
    });
}

#[test]
fn a_security_scope_without_capabilities_comes_to_what_is_explained() {
    isolated(|host| comes_to_what_is_explained(host, "security { user = ecuser group = ecuser }"));
}

#[test]
fn a_worker_that_is_root_comes_to_what_is_explained_with_a_warning_and_its_remedy() {
    isolated(|host| {
        let root = "security {\n  user = root group = root\n  capabilities = \"cap_net_bind_service+ep\"\n}";
        comes_to_what_is_explained(host, root);
        let config = broker::config(host, root);
        for command in ["check", "explain"] {
            let output = run(host, &[command, config.to_str().unwrap()]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            for words in
                ["portreeve.conf:2:10", "exclusive", "other users' files", "a user of its own", "chown"]
            {
                assert!(said.contains(words), "{command} does not say {words:?}: {said}");
            }
        }
    });
}

#[test]
fn sets_and_groups_of_every_kind_come_to_what_is_explained() {
    isolated(|host| {
        host.add_group("sslcerts", 4400);
        let security = "security { user = ecuser group = ecuser supplemental_groups = ( sslcerts 4300 )
            capabilities = \"cap_net_raw+eip cap_chown+p\" }
            broker { socket = /run/host/broker.sock }";
        comes_to_what_is_explained(host, security);
    });
}

/// Has the command run under a system call filter that forbids nothing, as a container's forbids little.
fn under_a_filter(command: &mut Command) {
    let mut allow = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }];
    let filter = move || {
        let program = libc::sock_fprog { len: 1, filter: allow.as_mut_ptr() };
        // SAFETY: the program points at the one instruction of it, which outlives the call.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(filter) };
}

#[test]
fn under_a_filter_of_a_container_the_processes_are_as_explained() {
    isolated(|host| {
        let stage = Stage::new(host, "chroot");
        let config = broker::config(host, &sample::worker(&stage.chroot, "( /run/host/bin/puppet )", ""));
        let mut explain = Command::new(host.binary(binaries::BROKER));
        under_a_filter(explain.args(["explain", "--json"]).arg(&config));
        let explained = json(&explain.output().unwrap());
        let mut command = broker::command(host, &config);
        under_a_filter(&mut command);
        let broker = Broker::start_command(host, command);
        let _worker = stage.enter();
        is_as_explained(&explained, "broker", broker.pid());
        is_as_explained(&explained, "launcher", broker.launcher());
        is_as_explained(&explained, "worker", broker.worker());
        assert_eq!(role(&explained, "worker")["seccomp"]["mode"], 2);
    });
}

#[test]
fn explain_needs_no_root_and_changes_nothing() {
    isolated(|host| {
        let stage = Stage::new(host, "chroot");
        let text = sample::worker(
            &stage.chroot,
            "( /run/host/bin/puppet )",
            "ESMTP_Listener { Listen \"*:25\" {} } broker { socket = /run/host/broker.sock }",
        );
        let config = broker::config(host, &text);
        std::fs::set_permissions(&config, PermissionsExt::from_mode(0o644)).unwrap();
        let files = || -> Vec<_> {
            std::fs::read_dir("/run/host").unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        let before = files();
        let as_root = run(host, &["explain", config.to_str().unwrap()]);
        for words in [&["explain"][..], &["explain", "--json"], &["check", "--verbose"], &["check", "--json"]]
        {
            let mut command = Command::new(host.binary(binaries::BROKER));
            command.args(words).arg(&config).uid(WORKER).gid(WORKER).current_dir("/");
            let output = command.output().unwrap();
            assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
            if words == ["explain"] {
                assert_eq!(String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&as_root.stdout));
            }
        }
        assert_eq!(files(), before);
        assert!(census::listening().is_empty());
        assert!(process::children(1).is_empty());
    });
}

#[test]
fn explain_names_each_system_call_with_what_it_is_for_when_asked() {
    isolated(|host| {
        let config = broker::config(host, FIRST_SECURITY);
        host.add_user("ecuser", ECUSER);
        let explained = json(&run(host, &["explain", "-v", "--json", config.to_str().unwrap()]));
        let seccomp = &role(&explained, "broker")["seccomp"];
        let calls = seccomp["allowed"].as_array().unwrap();
        assert_eq!(calls.len() as u64, seccomp["calls"].as_u64().unwrap());
        assert!(calls.iter().all(|call| !call["why"].as_str().unwrap().is_empty()));
        let named = |name: &str| calls.iter().any(|call| call["name"] == name);
        assert!(named("bind") && !named("execve") && !named("openat"), "{calls:?}");
    });
}
