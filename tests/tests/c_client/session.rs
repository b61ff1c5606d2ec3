//! Every function of the C library against the broker.

use std::process::Command;

use portreeve_tests::broker::SOCKET;
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, isolated, lan, resources, sample};

use crate::compiler::{SANITIZERS, compile};

const TEST: &str = include_str!("../../../worker/c/tests/session.c");

#[test]
fn every_function_of_the_c_library_works_with_the_broker() {
    isolated(|host| {
        lan::create(&["far"]);
        let text = sample::addresses("");
        let text = text.replace(
            "allow = ( status listen address link )",
            "allow = ( status listen address link events )",
        );
        assert!(text.contains("events"));
        let broker = Broker::start(host, &text);
        let program = compile(host, "cc", "session", TEST, &[&SANITIZERS[..], &["portreeve.c"]].concat());
        let before = broker.descriptors();
        let addresses = ["10.1.1.7", "10.1.1.8", "192.0.2.1"];
        let output = run(Command::new(&program).arg(SOCKET).args(addresses), "gcc");
        assert_eq!(output, "all tests passed\n");
        assert!(resources::tcp_listeners().is_empty() && lan::show_address("10.1.1.7").is_none());
        broker.await_no_leak(&before);
    });
}
