//! Counters and measurements of the broker, as a peer reads them and as Prometheus reads them.

use std::path::Path;
use std::process::Command;

use portreeve_protocol::message::{Hello, ListenMany, Operation as _, Ping, StatusRequest};
use portreeve_protocol::metrics::{AddressCounts, Metrics, MetricsRequest, OperationCounts};
use portreeve_protocol::{FaultCode, Text};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::namespaces::run;
use portreeve_tests::peer::listen;
use portreeve_tests::{Broker, Host, Peer, binaries, eventually, isolated, lan, sample};
use rustix::process::Signal;

fn start(host: &Host, more: &str) -> Broker {
    let text = sample::control(r#"( "127.0.0.1:1-1999" )"#);
    Broker::start(host, &format!("{text}broker {{ {more} }}"))
}

fn metrics(peer: &mut Peer) -> Metrics {
    peer.request(&MetricsRequest {}).unwrap().0
}

fn of<'m>(metrics: &'m Metrics, operation: &str) -> &'m OperationCounts {
    metrics.operations.iter().find(|counts| counts.name.as_str() == operation).unwrap()
}

#[test]
fn requests_are_counted_by_operation_and_result_with_their_duration() {
    isolated(|host| {
        let broker = start(host, "max_listeners = 3");
        let mut peer = broker.peer();
        let before = metrics(&mut peer);
        assert_eq!((before.sessions.open, before.sessions.opened), (1, 1));
        peer.request(&listen("127.0.0.1:1001")).unwrap();
        assert_eq!(peer.request(&listen("127.0.0.1:2001")).unwrap_err().code, FaultCode::Denied);
        let listeners = [1002, 1003, 1004, 2002].map(|port| listen(&format!("127.0.0.1:{port}")));
        peer.request(&ListenMany::truncated(false, listeners)).unwrap();
        (0..5).for_each(|_| peer.ping());
        let after = metrics(&mut peer);
        let listen = of(&after, "listen");
        assert_eq!((listen.granted, listen.denied, listen.quota, listen.failed), (1, 1, 0, 0));
        assert_eq!(listen.latencies.iter().sum::<u64>(), 2);
        let many = of(&after, ListenMany::NAME);
        assert_eq!((many.granted, many.denied, many.quota, many.failed), (2, 1, 1, 0));
        assert_eq!(many.latencies.iter().sum::<u64>(), 1);
        assert!(many.sum_us > 0);
        assert_eq!(of(&after, Ping::NAME).granted, 5);
        assert_eq!((after.listeners.held, after.listeners.retained), (3, 0));
        let own = after.peers.iter().find(|counts| counts.peer.as_str() == "user 0").unwrap();
        assert_eq!((own.sessions, own.listeners, own.refused), (1, 3, 3));
        assert_eq!(of(&after, StatusRequest::NAME).granted, 0);
        assert_eq!((after.worker, after.addresses), (None, None));
    });
}

#[test]
fn reloads_by_a_signal_are_counted_as_those_of_peers() {
    isolated(|host| {
        let broker = start(host, "retain = 31");
        let mut peer = broker.peer();
        let good = std::fs::read_to_string(host.path("portreeve.conf")).unwrap();
        let mut await_counts = |expected: (u64, u64)| {
            eventually("the reload", || {
                let reload = of(&metrics(&mut peer), "reload").clone();
                ((reload.granted, reload.failed) == expected).then_some(())
            });
        };
        std::fs::write(host.path("portreeve.conf"), good.replace("retain = 31", "retain = never")).unwrap();
        broker.signal(Signal::HUP);
        await_counts((0, 1));
        std::fs::write(host.path("portreeve.conf"), good.replace("retain = 31", "retain = 32")).unwrap();
        broker.signal(Signal::HUP);
        await_counts((1, 1));
    });
}

#[test]
fn malformed_and_rejected_sessions_are_counted() {
    isolated(|host| {
        let broker = start(host, "max_sessions = 2 max_log_lines = 1");
        let mut peer = broker.peer();
        let _held: Vec<_> =
            (0..2).map(|_| Peer::connect_as(Path::new(SOCKET), WORKER, WORKER).unwrap()).collect();
        let mut refused = Peer::connect_as(Path::new(SOCKET), WORKER, WORKER).unwrap();
        assert!(refused.is_disconnected());
        for _ in 0..3 {
            let mut rude = broker.peer();
            portreeve_protocol::channel::send_bytes(&rude.channel, b"EHLO").unwrap();
            assert!(rude.is_disconnected());
        }
        // The peer sees the end of its channel a moment before the session is closed.
        eventually("all sessions to be counted", || {
            let metrics = metrics(&mut peer);
            let sessions = &metrics.sessions;
            let counted = (sessions.rejected, sessions.malformed, sessions.opened, sessions.open);
            (counted == (1, 3, 6, 3) && metrics.log.suppressed > 0).then_some(())
        });
    });
}

#[test]
fn leases_are_counted_with_their_remaining_time() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        assert_eq!(metrics(&mut peer).addresses, Some(AddressCounts::default()));
        peer.add_address("10.1.1.7", |add| add.lease = Some(3)).unwrap();
        peer.renew_address("10.1.1.7").unwrap();
        let rival = peer.add_address("10.1.1.201", |add| add.probes = 1).unwrap_err();
        assert_eq!(rival.code, FaultCode::Conflict);
        let after = metrics(&mut peer);
        let AddressCounts { held, next_expiry_ms, renewals, conflicts, .. } = after.addresses.unwrap();
        assert_eq!((held, renewals, conflicts), (1, 1, 1));
        assert!(next_expiry_ms.is_some_and(|left| left <= 3_000), "{next_expiry_ms:?}");
        let add = of(&after, "add-address");
        assert_eq!((add.granted, add.failed), (1, 1));
        let page = shown(host);
        let lease =
            "portreeve_lease_remaining_seconds{address=\"10.1.1.7\",interface=\"eth1\",holder=\"user 0\"} ";
        assert!(page.contains(lease), "{page}");
        lan::ip("addr del 10.1.1.7/32 dev eth1");
        eventually("the restored address to be counted", || {
            (metrics(&mut peer).addresses?.restored == 1).then_some(())
        });
        eventually("the end of the lease", || {
            let counts = metrics(&mut peer).addresses?;
            (counts.expired == 1 && counts.held == 0 && counts.next_expiry_ms.is_none()).then_some(())
        });
    });
}

#[test]
fn metrics_need_permission() {
    isolated(|host| {
        let broker = start(host, "peer 7 { allow = ( metrics ) }");
        let other = |id| Peer::of_user(id, id);
        metrics(&mut other(7));
        assert_eq!(other(WORKER).request(&MetricsRequest {}).unwrap_err().code, FaultCode::Denied);
        assert_eq!(of(&metrics(&mut broker.peer()), "metrics").denied, 1);
    });
}

/// What the command prints.
fn shown(host: &Host) -> String {
    let mut client = Command::new(host.binary(binaries::CLIENT));
    run(client.args(["--socket", SOCKET, "metrics"]), "none: it is built here")
}

/// A client name with characters that could begin a line or end a label.
fn evil() -> Text<64> {
    Text::truncated("e\"} 1\n\u{1b}[2J\u{9b}31m\0")
}

#[test]
fn peer_text_cannot_forge_a_metric() {
    isolated(|host| {
        let broker = start(host, "");
        let mut peer = broker.connect();
        peer.request(&Hello { client: evil(), features: 0 }).unwrap();
        let text = shown(host);
        assert!(text.contains("\nportreeve_up 1\n"), "{text}");
        for line in text.lines() {
            assert!(line.starts_with("portreeve_") || line.starts_with("# "), "{line:?}");
            assert!(line.len() < 256 && !line.contains(|c: char| c.is_control()), "{line:?}");
        }
    });
}
