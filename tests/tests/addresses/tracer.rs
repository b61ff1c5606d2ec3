//! A tracer that delays the broker's messages to the kernel.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use portreeve_tests::Broker;

/// Attaches a tracer that delays each message, or those that an expression of strace(1) names, from now on: `20ms`,
/// `600s:when=4`. The end of the tracer lets the broker go on.
pub fn delay_messages(broker: &Broker, delay: &str) -> Child {
    let mut tracer = Command::new("strace")
        .arg(format!("--inject=sendto:delay_enter={delay}"))
        .args(["-e", "trace=sendto", "-p"])
        .arg(broker.pid().to_string())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tracer.stderr.take().unwrap()).lines();
    let attached = lines.next().unwrap().unwrap();
    assert!(attached.contains("attached"), "{attached}");
    // The tracer must not end by SIGPIPE.
    std::thread::spawn(move || lines.for_each(drop));
    tracer
}
