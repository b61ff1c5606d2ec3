//! The audit log: one true line for each request, and the level of the log.

use std::process::Command;

use portreeve_protocol::List;
use portreeve_protocol::address::{AddAddress, RemoveAddress};
use portreeve_protocol::message::{Listen, ListenMany, ListenOptions, ListenerId};
use portreeve_tests::broker::{self, SOCKET, config};
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, Host, Peer, binaries, eventually, isolated, sample};

/// The user nobody, whom a peer scope names.
const NOBODY: u32 = 65534;

fn many(endpoints: &[&str], all_or_nothing: bool) -> ListenMany {
    let listen = |endpoint: &&str| {
        Listen::new(
            endpoint.parse().unwrap(),
            ListenOptions { backlog: Some(7), free_bind: true, ..ListenOptions::default() },
        )
    };
    ListenMany::truncated(all_or_nothing, endpoints.iter().map(listen))
}

/// The audit lines of an operation so far.
fn lines(broker: &Broker, operation: &str) -> Vec<String> {
    let name = format!("operation=\"{operation}\"");
    broker.log.lines().into_iter().filter(|line| line.contains(&name)).collect()
}

/// The next audit line of an operation.
fn next(broker: &Broker, operation: &str, before: usize) -> String {
    eventually("the audit line", || lines(broker, operation).get(before).cloned())
}

fn check(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!line.contains("Some(") && !line.contains("rules=-"), "{line}");
}

/// Runs the command as root.
fn client(host: &Host, arguments: &[&str]) {
    run(Command::new(host.binary(binaries::CLIENT)).args(["--socket", SOCKET]).args(arguments), "none");
}

fn configuration(level: &str) -> String {
    format!(
        r#"{}cluster {{ topology "10.1.1.0/24" {{ interface = lo }} }}
        broker {{ log_level = {level} permit "some" {{ address = "10.1.1.7" }} }}"#,
        sample::control(r#"( "127.0.0.1:1000-1999" )"#)
    )
    .replace(
        "capabilities = \"cap_net_bind_service+ep\"",
        "capabilities = \"cap_net_admin,cap_net_bind_service,cap_net_raw+ep\"",
    )
}

#[test]
fn each_batch_has_one_line_with_its_arguments_its_result_and_its_rules() {
    isolated(|host| {
        let broker = Broker::start(host, &configuration("info"));
        let mut peer = broker.peer();
        peer.request(&many(&["127.0.0.1:2001", "127.0.0.1:2002"], false)).unwrap();
        let refused = next(&broker, "listen-many", 0);
        check(
            &refused,
            &[
                "WARN audit: refused ",
                "127.0.0.1:2001 ",
                "127.0.0.1:2002 ",
                "done=0 refused=2 code=\"denied\"",
            ],
        );
        check(&refused, &["backlog 7", "free_bind", "127.0.0.1:2001; ", "reason="]);
        assert!(!refused.contains("rules="), "{refused}");

        peer.request(&many(&["127.0.0.1:1001", "127.0.0.1:2002"], false)).unwrap();
        let partly = next(&broker, "listen-many", 1);
        check(&partly, &["audit: partly done ", "done=1 refused=1 code=\"denied\"", "portreeve.conf:"]);

        peer.request(&many(&["127.0.0.1:1002", "127.0.0.1:2002"], true)).unwrap();
        check(&next(&broker, "listen-many", 2), &["audit: refused ", "done=0 refused=2", "rolled back"]);

        peer.request(&many(&["127.0.0.1:1003", "127.0.0.1:1004"], false)).unwrap();
        let done = next(&broker, "listen-many", 3);
        check(&done, &["INFO audit: done ", "done=2", "portreeve.conf:"]);
        assert!(!done.contains("refused="), "{done}");

        peer.stop(&[ListenerId(999_999)]);
        check(&next(&broker, "stop", 0), &["audit: refused ", "arguments=999999", "code=\"not-found\""]);

        let addresses = ["10.1.1.8", "10.1.1.9"].map(|address| address.parse().unwrap());
        let add = AddAddress { addresses: List::truncated(addresses), epoch: 3, ..AddAddress::default() };
        peer.request(&add).unwrap();
        let refused = next(&broker, "add-address", 0);
        check(&refused, &["audit: refused ", "arguments=\"10.1.1.8 10.1.1.9 epoch 3\"", "done=0 refused=2"]);

        let remove = RemoveAddress { addresses: List::truncated(addresses), epoch: 3 };
        peer.request(&remove).unwrap();
        check(&next(&broker, "remove-address", 0), &["audit: refused ", "done=0 refused=2"]);
        for operation in ["listen-many", "stop", "add-address", "remove-address"] {
            let expected = if operation == "listen-many" { 4 } else { 1 };
            assert_eq!(lines(&broker, operation).len(), expected, "{operation}");
        }
    });
}

#[test]
fn commands_write_no_lines_unless_the_level_is_debug_and_a_reload_sets_it() {
    isolated(|host| {
        let file = config(host, &configuration("info"));
        let broker = Broker::start_command(host, broker::command(host, &file));
        client(host, &["status"]);
        // The line of a later request shows that those before it are written.
        broker.peer().request(&many(&["127.0.0.1:2001"], false)).unwrap();
        next(&broker, "listen-many", 0);
        let noise = |line: &&String| {
            ["hello", "session ended", "portreeve_broker::"].iter().any(|word| line.contains(word))
        };
        let written = broker.log.lines();
        assert_eq!(written.iter().find(noise), None);

        std::fs::write(&file, configuration("debug")).unwrap();
        client(host, &["reload"]);
        client(host, &["status"]);
        broker.log.wait_for(&["DEBUG audit: done", "operation=\"hello\"", "(root)"]);
        broker.log.wait_for(&["DEBUG session ended", "the peer closed the channel"]);

        std::fs::write(&file, configuration("error")).unwrap();
        client(host, &["reload"]);
        broker.peer().request(&many(&["127.0.0.1:2001"], false)).unwrap();
        next(&broker, "listen-many", 1);
        let before = broker.log.lines().len();
        client(host, &["status"]);
        Peer::of_user(NOBODY, NOBODY).listen("127.0.0.1:1005").unwrap();
        check(&next(&broker, "listen", 0), &["INFO audit: done", "peer=\"user 65534 (nobody)\""]);
        let after = broker.log.lines();
        assert!(after[before..].iter().all(|line| line.contains("audit: ")), "{:?}", &after[before..]);
    });
}
