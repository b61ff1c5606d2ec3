//! A takeover from a broker that another program supervises.

use std::fs;

use portreeve_tests::broker::{self, config};
use portreeve_tests::startup_failure::exit;
use portreeve_tests::{Broker, Host, StartupFailure, isolated, sample};

/// Gives this process, the parent of the broker, the name of another program.
fn be(program: &str) {
    fs::write("/proc/self/comm", program).unwrap();
}

fn taking_over(host: &Host) -> StartupFailure {
    let mut command = broker::command(host, &config(host, &sample::control(r#"( "127.0.0.1:1-1999" )"#)));
    command.arg("--takeover");
    StartupFailure::of_command(command)
}

#[test]
fn a_supervised_broker_is_not_replaced_by_hand_and_the_message_names_the_command() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:1-1999" )"#);
        be("runsv");
        let mut first = Broker::start(host, &text);
        let mut peer = first.peer();
        peer.listen("127.0.0.1:1001").unwrap();
        let directory = std::env::current_dir().unwrap();
        for (supervisor, command) in [
            ("runsv", format!("run sv restart {}", directory.display())),
            ("s6-supervise", format!("run s6-svc -r {}", directory.display())),
            ("supervise-daemo", "run rc-service ".to_owned()),
            ("tini", "restart the container".to_owned()),
        ] {
            be(supervisor);
            let refusal = taking_over(host);
            assert_eq!(refusal.code, Some(exit::UNAVAILABLE), "{}", refusal.message);
            for part in ["supervised by", command.as_str(), "--takeover=force", "still serves"] {
                assert!(refusal.message.contains(part), "{part}: {}", refusal.message);
            }
            peer.ping();
        }
        // The operator insists.
        let mut command = broker::command(host, &config(host, &text));
        command.arg("--takeover=force");
        let mut next = Broker::start_command(host, command);
        assert!(first.wait_for_exit().success());
        be("sh");
        next.replace(host, &text);
    });
}
