//! The broker returns memory that it no longer needs to the kernel, and continues to serve.

use portreeve_protocol::reload::Reload;
use portreeve_tests::peer::listen;
use portreeve_tests::{Broker, eventually, isolated, process, sample};

/// Waits until a function is true.
fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || holds().then_some(()));
}

#[test]
fn pages_of_program_files_that_only_the_start_used_are_given_back() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:2525" )"#));
        await_that("less memory than at the start", || {
            process::status_kilobytes(broker.pid(), "VmRSS")
                < process::status_kilobytes(broker.pid(), "VmHWM") * 2 / 3
        });
        let mut peer = broker.peer();
        peer.listen("127.0.0.1:2525").unwrap();
        assert!(peer.request(&Reload::default()).unwrap().0.accepted);
        assert_eq!(peer.status().listeners.len(), 1);
    });
}

#[test]
fn memory_of_listeners_that_have_stopped_is_given_back() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.0/8:20000-20063" )"#));
        let mut peer = broker.peer();
        let idle = process::status_kilobytes(broker.pid(), "RssAnon");
        let endpoint = |n: u16| listen(&format!("127.1.0.{}:{}", n / 64, 20_000 + n % 64));
        let firsts = (0..4000).step_by(200);
        let listeners: Vec<_> =
            firsts.flat_map(|first| peer.listen_many((first..first + 200).map(endpoint))).collect();
        let with = process::status_kilobytes(broker.pid(), "RssAnon");
        assert!(with > idle + 500, "{idle} kB, {with} kB");
        for some in listeners.chunks(200) {
            peer.stop(some);
        }
        await_that("less memory than with the listeners", || {
            process::status_kilobytes(broker.pid(), "RssAnon") < idle + (with - idle) / 2
        });
    });
}
