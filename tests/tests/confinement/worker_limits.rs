//! Limits of the worker: check, explain and a start agree whether each can be set.

use std::path::Path;
use std::process::{Command, Output};

use portreeve_tests::startup_failure::exit;
use portreeve_tests::{Broker, Host, StartupFailure, binaries, broker, isolated};

fn text(limits: &str) -> String {
    format!(
        "security {{ user = nobody group = nogroup }} worker {{ command = ( /bin/sleep 1000 ) limit = [ {limits} ] }}"
    )
}

/// A command that runs the broker with these arguments after the shell has run `before`.
fn limited(host: &Host, before: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(format!("{before}; exec \"$@\""))
        .arg("sh")
        .arg(host.binary(binaries::BROKER))
        .args(arguments);
    command
}

/// A command as above that cannot raise a hard limit.
fn without_the_capability(host: &Host, before: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    let limited = limited(host, before, arguments);
    command.arg("--bounding-set=-sys_resource").arg(limited.get_program()).args(limited.get_args());
    command
}

fn shown(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

/// The soft and the hard limit of a process.
fn limits(pid: u32, row: &str) -> (String, String) {
    let all = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let row = all.lines().find_map(|line| line.strip_prefix(row)).unwrap();
    let mut words = row.split_whitespace().map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

fn path(config: &Path) -> &str {
    config.to_str().unwrap()
}

#[test]
fn a_limit_that_cannot_be_set_is_an_error_of_check_explain_and_a_start_alike() {
    isolated(|host| {
        for (before, limit, words) in [
            ("ulimit -c 0", "core = unlimited", &["core=unlimited", "hard limit 0", "LimitCORE="][..]),
            ("ulimit -n 1024", "nofile = 2000", &["nofile=2000", "hard limit 1024", "LimitNOFILE="]),
            ("ulimit -l 64", "memlock = 1000000", &["memlock=1000000", "hard limit 65536", "LimitMEMLOCK="]),
            ("true", "nofile = unlimited", &["nofile=unlimited", "fs.nr_open"]),
        ] {
            let config = broker::config(host, &text(limit));
            for verb in ["check", "explain"] {
                let output = without_the_capability(host, before, &[verb, path(&config)]).output().unwrap();
                let told = shown(&output);
                assert_eq!(output.status.code(), Some(exit::CONFIG), "{verb} {limit}: {told}");
                assert!(words.iter().all(|word| told.contains(word)), "{verb} {limit}: {told}");
            }
            let start = without_the_capability(host, before, &["--config", path(&config)]);
            StartupFailure::of_command(start)
                .assert_reports(exit::NO_PERMISSION, &[&["limits", "portreeve.conf:1"], words].concat());
        }
    });
}

#[test]
fn a_limit_below_the_hard_limit_needs_no_capability_and_the_worker_may_dump_core() {
    isolated(|host| {
        let config = broker::config(host, &text("core = 1000000 nofile = 500"));
        let before = "ulimit -n 1024; ulimit -Sc 0; ulimit -Hc 10000";
        for verb in ["check", "explain"] {
            let output = without_the_capability(host, before, &[verb, path(&config)]).output().unwrap();
            assert!(output.status.success(), "{}", shown(&output));
            assert!(verb == "check" || shown(&output).contains("core 1000000"), "{}", shown(&output));
        }
        let start = without_the_capability(host, before, &["--config", path(&config)]);
        let broker = Broker::start_command(host, start);
        let one = |limit: &str| (limit.to_owned(), limit.to_owned());
        assert_eq!(limits(broker.worker(), "Max core file size"), one("1000000"));
        assert_eq!(limits(broker.worker(), "Max open files"), one("500"));
        assert_eq!(limits(broker.launcher(), "Max core file size").0, "0");
        assert_eq!(limits(broker.pid(), "Max core file size"), one("0"));
        assert_eq!(limits(broker.reader(), "Max core file size"), one("0"));
        drop(broker);
        // Without the option there are no core files, whatever the limit at the start.
        let start = limited(host, before, &["--config", path(&broker::config(host, &text("nofile = 500")))]);
        assert_eq!(limits(Broker::start_command(host, start).worker(), "Max core file size"), one("0"));
    });
}

#[test]
fn a_limit_of_open_files_has_to_leave_room_for_the_static_listeners() {
    isolated(|host| {
        let listeners: String = (2000..2030).map(|port| format!("Listen \":{port}\" {{ }} ")).collect();
        let text = format!("{} A_Listener {{ {listeners} }}", text("nofile = 32"));
        let config = broker::config(host, &text);
        let output = limited(host, "true", &["check", path(&config)]).output().unwrap();
        assert_eq!(output.status.code(), Some(exit::CONFIG), "{}", shown(&output));
        assert!(shown(&output).contains("no room for the 30 static listeners"), "{}", shown(&output));
        StartupFailure::of(host, &text)
            .assert_reports(exit::CONFIG, &["no room for the 30 static listeners"]);
    });
}
