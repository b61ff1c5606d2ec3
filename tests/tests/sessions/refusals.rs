//! Requests that are refused, each with its own fault code.

use std::net::TcpListener;
use std::time::Instant;

use portreeve_protocol::message::{Hello, Listen, ListenMany, ListenOptions, Outcome};
use portreeve_protocol::{FaultCode, Text};
use portreeve_tests::peer::listen;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, isolated, resources, sample};

const ANYWHERE: &str = r#"( "*:1-65535" "[::]:1-65535" )"#;

#[test]
fn an_endpoint_held_by_another_session_is_refused_with_its_owner() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let (mut owner, mut other) = (broker.peer(), broker.peer());
        let before = broker.descriptors();
        // An endpoint that is held, and one that conflicts with it.
        let pairs = [
            ("127.0.0.1:2501", "127.0.0.1:2501"),
            ("*:2502", "127.0.0.1:2502"),
            ("127.0.0.1:2503", "*:2503"),
            ("[::]:2505", "[::1]:2505"),
        ];
        let mut held = Vec::new();
        for (first, second) in pairs {
            let (id, _) = owner.listen(first).unwrap_or_else(|fault| panic!("{first}: {fault}"));
            held.push(id);
            let Err(fault) = other.listen(second) else { panic!("{second} was granted beside {first}") };
            assert_eq!(fault.code, FaultCode::InUse, "{second} beside {first}: {fault}");
            assert!(fault.subject.contains("session"), "{second} beside {first}: {fault:?} names no owner");
        }
        owner.stop(&held);
        broker.await_no_leak(&before);
    });
}

#[test]
fn an_endpoint_held_by_another_program_is_refused_as_in_use() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        let _specific = TcpListener::bind("127.0.0.1:2501").unwrap();
        let _wildcard = TcpListener::bind("0.0.0.0:2502").unwrap();
        let _both = TcpListener::bind("[::]:2503").unwrap();
        for endpoint in ["127.0.0.1:2501", "*:2501", "127.0.0.1:2502", "127.0.0.1:2503", "[::1]:2503"] {
            let Err(fault) = peer.listen(endpoint) else { panic!("{endpoint} was granted") };
            assert_eq!(fault.code, FaultCode::InUse, "{endpoint}: {fault}");
        }
        assert_eq!(peer.status().listeners_held, 0);
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_non_local_address_is_refused() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "192.0.2.0/24:25" )"#));
        let mut peer = broker.peer();
        assert_eq!(peer.listen("192.0.2.1:25").unwrap_err().code, FaultCode::NotLocal);
        let request = Listen {
            options: ListenOptions { free_bind: true, ..ListenOptions::default() },
            ..listen("192.0.2.1:25")
        };
        peer.request(&request).unwrap();
    });
}

#[test]
fn a_further_hello_is_refused_and_its_flood_drowns_no_log() {
    isolated(|host| {
        let text =
            format!("{} broker {{ max_refusals = 1000 }}", sample::control(r#"( "127.0.0.1:1-65535" )"#));
        let broker = Broker::start(host, &text);
        let mut peer = broker.peer();
        let hello = Hello { client: Text::new("other").unwrap(), features: 0 };
        let start = Instant::now();
        for _ in 0..500 {
            let fault = peer.request(&hello).unwrap_err();
            assert_eq!(fault.code, FaultCode::Malformed, "{fault}");
        }
        let seconds = start.elapsed().as_secs() + 2;
        peer.ping();
        let session = peer.status().sessions[0].clone();
        assert_eq!((&*session.client, session.refused), ("test", 500), "the first hello counts");
        peer.listen("127.0.0.1:2001").unwrap();
        broker.log.wait_for(&["done", "127.0.0.1:2001"]);
        let refused = broker.log.lines().iter().filter(|line| line.contains("hello")).count() as u64;
        assert!(refused <= 20 * seconds, "{refused} lines in {seconds} s");
    });
}

#[test]
fn the_worker_may_send_hello_again() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let _broker =
            Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", ""));
        let (_scripted, mut worker) = setup.accept();
        // A program that the worker executes can take over its channel.
        (0..3).for_each(|_| drop(worker.hello()));
        worker.ping();
    });
}

#[test]
fn endpoints_without_a_permit_are_denied() {
    isolated(|host| {
        let permits = r#"( "127.0.0.1:25" "127.0.0.1:1000-1010" "*:53/udp" "10.1.1.0/24:587" )"#;
        let broker = Broker::start(host, &sample::control(permits));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        for endpoint in [
            "127.0.0.1:26",
            "127.0.0.2:25",
            "*:25",
            "[::]:25",
            "[::1]:25",
            "[::ffff:127.0.0.1]:25",
            "127.0.0.1:25/udp",
            "127.0.0.1:999",
            "127.0.0.1:1011",
            "*:53",
            "10.1.2.1:587",
            "/run/mail.sock",
            "seqpacket:/run/mail.sock",
        ] {
            let Err(fault) = peer.listen(endpoint) else { panic!("{endpoint} was granted") };
            assert_eq!(fault.code, FaultCode::Denied, "{endpoint}: {fault}");
        }
        assert!(resources::tcp_listeners().is_empty());
        broker.await_no_leak(&before);
    });
}

#[test]
fn each_denied_item_of_a_request_gets_its_own_fault() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let mut peer = broker.peer();
        let refused = (1..253)
            .map(|port| listen(&format!("[2001:db8:1111:2222:3333:4444:5555:6666]:{}", 60_000 + port)));
        let listeners = [listen("127.0.0.1:25")].into_iter().chain(refused);
        let (reply, descriptors) = peer.request(&ListenMany::truncated(false, listeners)).unwrap();
        assert_eq!(descriptors.len(), 1);
        let denied =
            |result: &Outcome<_>| matches!(result, Outcome::Fault(fault) if fault.code == FaultCode::Denied);
        assert_eq!(reply.results.iter().filter(|result| denied(result)).count(), 252);
    });
}
