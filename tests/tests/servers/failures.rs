//! What `portreeve run` says when it cannot run a program.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, binaries, isolated};

use crate::programs::{command, config, outcome};

#[test]
fn the_exit_status_is_that_of_the_program_or_says_why_there_is_none() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        for (arguments, code, message) in [
            (&["true"][..], 0, ""),
            (&["sh", "-c", "exit 7"], 7, ""),
            (&["--", "sh", "-c", "kill -9 $$"], 137, ""),
            (
                &["/nonexistent"],
                127,
                "portreeve: cannot run \"/nonexistent\": No such file or directory (os error 2)",
            ),
            (
                &["no-such-program"],
                127,
                "portreeve: cannot run \"no-such-program\": No such file or directory (os error 2)",
            ),
            (&["/etc/passwd"], 126, "portreeve: cannot run \"/etc/passwd\": Permission denied (os error 13)"),
        ] {
            let (found, out, error) = outcome(command(host, arguments));
            assert_eq!((found, out.as_str(), error.as_str()), (Some(code), "", message), "{arguments:?}");
        }
        let program = host.path("set-id");
        std::fs::copy("/bin/true", &program).unwrap();
        for (mode, kind) in [(0o4755, "set-user-id"), (0o2755, "set-group-id")] {
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
            let (code, _, error) = outcome(command(host, &[program.to_str().unwrap()]));
            let message = format!(
                "portreeve: cannot run {:?}: it is a {kind} program, which gets no privileges under portreeve run. Run it without \
                 portreeve, or as this user with --ignore-set-id",
                program.to_str().unwrap()
            );
            assert_eq!((code, error), (Some(126), message));
            let (code, _, error) = outcome(command(host, &["--ignore-set-id", program.to_str().unwrap()]));
            assert_eq!((code, error.as_str()), (Some(0), ""));
        }
        let (code, _, _) = outcome(command(host, &[]));
        assert_eq!(code, Some(64));
    });
}

#[test]
fn without_a_broker_or_without_a_permit_nothing_is_run() {
    isolated(|host| {
        let (code, out, error) = outcome(command(host, &["echo", "run"]));
        assert_eq!((code, out.as_str()), (Some(69), ""));
        assert!(
            error.starts_with("portreeve: cannot connect to the broker at /run/host/broker.sock: "),
            "{error}"
        );
        let _broker = Broker::start(host, &config(r#"( "/run/host/mail.sock" )"#));
        let (code, out, error) = outcome(command(host, &["echo", "run"]));
        assert_eq!((code, out.as_str()), (Some(77), ""));
        let expected = "portreeve: policy permits this user no TCP or UDP listener, so the broker could answer no bind of the \
                        program. Add a permit with listen to its peer scope, see portreeve.conf(5), or run the program without \
                        portreeve";
        assert_eq!(error, expected);
        let (code, out, error) = outcome(command(host, &["--dry-run"]));
        assert_eq!((code, error.as_str()), (Some(0), ""));
        assert_eq!(out, "the broker would open no listener: policy permits none to this user");
    });
}

#[test]
fn a_dry_run_shows_what_the_broker_would_open_and_runs_nothing() {
    isolated(|host| {
        let _broker =
            Broker::start(host, &config(r#"( "*:80" "[::]:80-90" "/run/host/x.sock" "*:53/udp" )"#));
        let (code, out, _) = outcome(command(host, &["--dry-run", "--", "sh", "-c", "echo run >&2; exit 7"]));
        let rows: Vec<&str> = out.lines().map(|line| line.split("  ").next().unwrap()).collect();
        let expected = [
            "THE BROKER OPENS",
            "permit \"servers\": listen *:80",
            "permit \"servers\": listen [::]:80-90",
            "permit \"servers\": listen *:53/udp",
        ];
        assert_eq!((code, rows.as_slice()), (Some(0), &expected[..]));
        let mut json = Command::new(host.binary(binaries::CLIENT));
        json.args(["--socket", SOCKET, "--json", "run", "--dry-run"]);
        let (code, out, _) = outcome(json);
        assert_eq!(code, Some(0));
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["rules"][1]["text"], "permit \"servers\": listen [::]:80-90");
        assert_eq!(value["rules"].as_array().unwrap().len(), 3);
    });
}

#[test]
fn a_second_supervisor_and_a_kernel_without_notifications_are_named() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let client = host.binary(binaries::CLIENT);
        let client = client.to_str().unwrap();
        let (code, out, error) = outcome(command(host, &[client, "--socket", SOCKET, "run", "echo", "run"]));
        assert_eq!((code, out.as_str()), (Some(71), ""));
        assert!(error.contains("bind(2) is already intercepted here"), "{error}");
        assert!(
            error.contains("(EBUSY), and Linux allows one. Run without it, or outside the container"),
            "{error}"
        );
        // A filter that denies seccomp(2), a kernel before 5.0, which has filters without notifications, and one before 5.9.
        let add_descriptor = libc::SECCOMP_IOCTL_NOTIF_ADDFD;
        let none = ["ENOSYS", "EINVAL", "EPERM"].map(|errno| vec![format!("seccomp={errno}")]);
        let old = vec!["seccomp:8@1=EINVAL".to_owned(), "seccomp:40@1=EINVAL".to_owned()];
        let newer =
            ["EINVAL", "ENOTTY", "ENOSYS"].map(|errno| vec![format!("ioctl:{add_descriptor}@1={errno}")]);
        for denied in none.into_iter().chain([old]).chain(newer) {
            let mut command = Command::new(host.binary(binaries::DENY_SYSCALLS));
            command.args(&denied).args(["--", client, "--socket", SOCKET, "run", "touch", "/run/host/ran"]);
            let (code, out, error) = outcome(command);
            assert_eq!((code, out.as_str()), (Some(71), ""), "{denied:?}: {error}");
            let expected = "portreeve: cannot intercept bind(2): seccomp user notification with SECCOMP_IOCTL_NOTIF_ADDFD is not \
                            available (";
            assert!(error.starts_with(expected) && !error.contains('\n'), "{denied:?}: {error}");
        }
        // It was never executed, not even to be killed at once.
        assert!(!host.path("ran").exists());
    });
}
