//! `explain` prints what the kernel later reports for the processes.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use portreeve_tests::chroot::WORKER;
use portreeve_tests::explain::{assert_process_matches, assert_status_matches, json, role, run};
use portreeve_tests::sample::{FIRST_SECURITY, SECOND_SECURITY};
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, StartupFailure, binaries, broker, isolated, process, resources, sample};

const SYS_RESOURCE: u64 = 1 << 24;
const ECUSER: u32 = 4321;

/// Explains a configuration, starts it, and compares.
#[track_caller]
fn starts_as_explained(host: &Host, security: &str) {
    host.add_user("ecuser", ECUSER);
    let setup = WorkerSetup::new(host, "chroot");
    let text = format!(
        "{security}\nsecurity {{ chroot = /run/host/chroot }}
        worker {{ command = ( /run/host/bin/scripted_worker ) limit = [ nofile = 512 ] }}"
    );
    let config = broker::config(host, &text);
    let explained = json(&run(host, &["explain", config.to_str().unwrap(), "--json"]));
    let broker = Broker::start(host, &text);
    let (_scripted, mut channel) = setup.accept();
    assert_process_matches(&explained, "broker", broker.pid());
    assert_process_matches(&explained, "launcher", broker.launcher());
    assert_process_matches(&explained, "worker", broker.worker());
    assert_process_matches(&explained, "reader", broker.reader());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", broker.worker())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), role(&explained, "worker")["limits"]["nofile"].as_str());

    channel.hello();
    assert_status_matches(&explained, &mut channel);
    let operations = explained["peers"][0]["operations"].as_array().unwrap();
    assert!(operations.iter().any(|operation| operation == "listen"), "{explained}");
}

#[test]
fn the_first_sample_starts_as_explained() {
    isolated(|host| starts_as_explained(host, FIRST_SECURITY));
}

#[test]
fn the_second_sample_starts_as_explained_or_names_the_missing_capability() {
    isolated(|host| {
        if process::threads(std::process::id())[0].bounding & SYS_RESOURCE != 0 {
            return starts_as_explained(host, SECOND_SECURITY);
        }
        host.add_user("ecuser", ECUSER);
        let config = broker::config(host, SECOND_SECURITY);
        let check = run(host, &["check", config.to_str().unwrap()]);
        let printed = String::from_utf8_lossy(&check.stderr);
        assert!(
            check.status.success() && printed.contains("warning: cap_sys_resource cannot be retained"),
            "{printed}"
        );
        let refusal = StartupFailure::of(host, SECOND_SECURITY);
        refusal.assert_reports(77, &["portreeve.conf:5:18", "cap_sys_resource", "bounding set"]);
        starts_as_explained(host, &SECOND_SECURITY.replace(" cap_sys_resource+ep", ""));
    });
}

#[test]
fn a_security_scope_without_capabilities_starts_as_explained() {
    isolated(|host| starts_as_explained(host, "security { user = ecuser group = ecuser }"));
}

#[test]
fn a_worker_with_user_root_starts_as_explained_with_a_warning_and_a_remedy() {
    isolated(|host| {
        let root = "security {\n  user = root group = root\n  capabilities = \"cap_net_bind_service+ep\"\n}";
        starts_as_explained(host, root);
        let config = broker::config(host, root);
        for command in ["check", "explain"] {
            let output = run(host, &[command, config.to_str().unwrap()]);
            let printed = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{printed}");
            for words in [
                "portreeve.conf:2:10",
                "without any capability",
                "other users' files",
                "a separate user",
                "chown",
            ] {
                assert!(printed.contains(words), "{command} does not say {words:?}: {printed}");
            }
        }
    });
}

#[test]
fn capability_sets_and_groups_start_as_explained() {
    isolated(|host| {
        host.add_group("sslcerts", 4400);
        let security = "security { user = ecuser group = ecuser supplemental_groups = ( sslcerts 4300 )
            capabilities = \"cap_net_raw+eip cap_chown+p\" }
            broker { socket = /run/host/broker.sock }";
        starts_as_explained(host, security);
    });
}

#[test]
fn explain_needs_no_root_and_changes_nothing() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let text = sample::worker(
            &setup.chroot,
            "( /run/host/bin/scripted_worker )",
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
        assert!(resources::tcp_listeners().is_empty());
        assert!(process::other_processes().is_empty());
    });
}

#[test]
fn explain_verbose_lists_each_system_call_with_its_reason() {
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
