//! The broker returns memory that it no longer needs to the kernel, and continues to serve.

use portreeve_protocol::message::{Listen, ListenMany, ListenerId, Listening, Outcome};
use portreeve_protocol::reload::Reload;
use portreeve_tests::peer::listen;
use portreeve_tests::{Broker, Peer, eventually, isolated, process, sample};

fn kilobytes(broker: &Broker, field: &str) -> u64 {
    process::status_field(broker.pid(), field).trim_end_matches("kB").trim().parse().unwrap()
}

/// Waits until a function is true.
fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || holds().then_some(()));
}

/// Opens listeners, and closes the peer's copies of their sockets.
fn hold(peer: &mut Peer, some: &[Listen]) -> Vec<ListenerId> {
    let (reply, _sockets) = peer.request(&ListenMany::truncated(true, some.iter().cloned())).unwrap();
    reply
        .results
        .into_vec()
        .into_iter()
        .map(|outcome| match outcome {
            Outcome::Done(Listening { id }) => id,
            Outcome::Fault(fault) => panic!("{fault}"),
        })
        .collect()
}

#[test]
fn pages_of_program_files_that_only_the_start_used_are_given_back() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:2525" )"#));
        await_that("less memory than at the start", || {
            kilobytes(&broker, "VmRSS") < kilobytes(&broker, "VmHWM") * 2 / 3
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
        let idle = kilobytes(&broker, "RssAnon");
        let endpoints: Vec<_> =
            (0..4000_u16).map(|n| listen(&format!("127.1.0.{}:{}", n / 64, 20_000 + n % 64))).collect();
        let listeners: Vec<_> = endpoints.chunks(200).flat_map(|some| hold(&mut peer, some)).collect();
        let with = kilobytes(&broker, "RssAnon");
        assert!(with > idle + 500, "{idle} kB, {with} kB");
        for some in listeners.chunks(200) {
            peer.stop(some);
        }
        await_that("less memory than with the listeners", || {
            kilobytes(&broker, "RssAnon") < idle + (with - idle) / 2
        });
    });
}
