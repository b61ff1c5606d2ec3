//! Commands that an operator runs every day: they leave no warning in the log, and everybody may ask about itself.

use std::process::Command;

use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, Host, binaries, isolated, lan, sample};

/// Runs the command as a user, and returns its exit code and its output.
fn portreeve(host: &Host, user: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups"]).arg(host.binary(binaries::CLIENT));
    let output = command.args(["--socket", SOCKET]).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn queries_of_root_leave_no_warning_in_the_log() {
    isolated(|host| {
        // This broker manages no addresses.
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        for query in [
            &["status"][..],
            &["status", "--json"],
            &["metrics"],
            &["policy"],
            &["events"],
            &["ping"],
            &["limit", "nofile"],
        ] {
            let (code, shown) = portreeve(host, "0", query);
            assert_eq!(code, Some(0), "{query:?}: {shown}");
        }
        let (_, shown) = portreeve(host, "0", &["policy"]);
        assert!(shown.contains(" listen ") && !shown.contains("address"), "{shown}");
        broker.log.wait_for(&["audit", "policy"]);
        let lines = broker.log.lines();
        // The start may have warned of what this host lacks.
        let served = lines.iter().skip_while(|line| !line.ends_with("ready"));
        let warnings: Vec<&String> =
            served.clone().filter(|line| line.contains("WARN") || line.contains("refused")).collect();
        assert!(served.count() > 1, "{lines:?}");
        assert!(warnings.is_empty(), "{warnings:?}");
    });
}

#[test]
fn a_user_may_ask_about_itself_without_a_grant() {
    isolated(|host| {
        let mut text = sample::control(r#"( "127.0.0.1:25" )"#);
        text += r#"broker { peer 2001 { allow = events permit = any } peer 2002 { allow = subscribe } }"#;
        let _broker = Broker::start(host, &text);
        let (code, shown) = portreeve(host, "2001", &["policy"]);
        assert_eq!(code, Some(0), "{shown}");
        assert!(shown.contains("operations: hello ping policy subscribe\n"), "{shown}");
        for user in ["2001", "2002"] {
            let (code, shown) = portreeve(host, user, &["events"]);
            assert_eq!(code, Some(0), "{user}: {shown}");
        }
        // Without a scope, not even that. One's own limit is no question to the broker.
        let (code, shown) = portreeve(host, "2003", &["policy"]);
        assert_eq!(code, Some(77), "{shown}");
        let (code, shown) = portreeve(host, "2003", &["limit", "nofile", "core"]);
        assert_eq!(code, Some(0), "{shown}");
        assert!(shown.contains("nofile") && shown.contains("core"), "{shown}");
        let (code, shown) = portreeve(host, "2003", &["limit", "files"]);
        assert!(code == Some(64) && shown.contains("\"files\": use one of as, core"), "{code:?} {shown}");
    });
}

#[test]
fn a_message_says_what_is_wrong_in_the_words_of_the_command() {
    isolated(|host| {
        lan::create(&["far"]);
        let _broker = Broker::start(host, &sample::addresses(""));
        for (user, words, message) in [
            ("0", &["link", "eth1", "mtu", "10"][..], "portreeve: eth1 does not accept MTU 10: request one"),
            ("0", &["address", "add", "10.1.1.7", "--lease", "1"], "portreeve: lease must be 3 to 86400 s\n"),
            (
                "0",
                &["address", "add", "10.1.1.7", "--lease", "25h"],
                "portreeve: lease must be 3 to 86400 s\n",
            ),
            ("12345", &["status"], "portreeve: no peer scope covers user 12345: add a peer scope"),
        ] {
            let (code, shown) = portreeve(host, user, words);
            assert!(code != Some(0) && shown.contains(message), "{words:?}: {shown}");
        }
    });
}
