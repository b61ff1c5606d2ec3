//! A broker takes over from the running one: it imports all state, and no client is refused.

use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portreeve_protocol::FaultCode;
use portreeve_protocol::address::{ListAddresses, RemoveAddress, RenewAddress};
use portreeve_protocol::message::{ListenMany, Outcome};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::packet_capture::{ARP_QUERY, PacketCapture, TICK, hex, is_arp_reply, last_arp_reply};
use portreeve_tests::peer::{listen, one_address};
use portreeve_tests::smtp_load::{self, BATCH, SmtpLoad};
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, eventually, isolated, lan, resources, sample};
use rustix::process::Signal;

/// The inode number of the control socket's file.
fn inode() -> u64 {
    std::fs::symlink_metadata(SOCKET).unwrap().ino()
}

#[test]
fn repeated_takeovers_refuse_no_client() {
    const CLIENTS: usize = 2;
    // Set PORTREEVE_TAKEOVERS for more: a hundred fit in the time limit of a test.
    let takeovers = std::env::var("PORTREEVE_TAKEOVERS").map_or(6, |text| text.parse().unwrap());
    isolated(|host| {
        let text = smtp_load::mail_server(host);
        let mut broker = Broker::start(host, &text);
        eventually("the listener", || (resources::tcp_listeners().len() == 1).then_some(()));
        let (id, before) = (broker.peer().status().listeners[0].id, broker.descriptors().0.len());
        let load = SmtpLoad::default();
        let started = Instant::now();
        let mut longest = Duration::ZERO;
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| load.run_client())).collect();
            for _ in 0..takeovers {
                let greeted = load.greeted();
                eventually("clients that are greeted", || {
                    let failed = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                    (failed || load.greeted() > greeted + 100).then_some(())
                });
                let begun = Instant::now();
                let next = broker.start_successor(host, &text);
                longest = longest.max(begun.elapsed());
                let status = broker.wait_for_exit();
                assert!(status.success(), "{status}");
                broker = next;
            }
            load.stop();
        });
        let (greeted, cut_off) = (load.greeted(), load.disconnected());
        let rate = greeted as f64 / started.elapsed().as_secs_f64();
        println!(
            "{takeovers} takeovers, the longest {longest:?}: {greeted} clients greeted ({rate:.0} a second), {cut_off} \
             cut off, 0 refused"
        );
        // Only clients that a worker had accepted when it ended.
        assert!(cut_off <= takeovers * CLIENTS * BATCH, "{cut_off} clients were cut off");
        let listeners = eventually("the adoption", || {
            let listeners = broker.peer().status().listeners;
            (!listeners.iter().any(|listener| listener.retained)).then_some(listeners)
        });
        assert_eq!((listeners.len(), listeners[0].id), (1, id));
        eventually("no descriptor more", || (broker.descriptors().0.len() <= before).then_some(()));
    });
}

#[test]
fn listeners_of_a_user_are_retained_for_its_next_session() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:1-65535" "[::1]:1-65535/udp" )"#);
        let mut first = Broker::start(host, &text);
        let file = inode();
        let mut peer = first.peer();
        let (id, _) = peer.listen("127.0.0.1:25").unwrap();
        let (udp, _) = peer.listen("[::1]:53/udp").unwrap();
        let second = first.start_successor(host, &text);
        assert!(first.wait_for_exit().success());
        assert!(peer.is_disconnected());
        assert_eq!(inode(), file, "the control socket is the same");
        let _client = TcpStream::connect("127.0.0.1:25").unwrap();
        let mut peer = second.peer();
        assert!(peer.status().listeners.iter().all(|listener| listener.retained));
        let (again, socket) = peer.listen("127.0.0.1:25").unwrap();
        assert_eq!((again, peer.listen("[::1]:53/udp").unwrap().0), (id, udp));
        assert!(!peer.status().listeners.iter().any(|listener| listener.retained));
        std::net::TcpListener::from(socket).accept().unwrap();
        assert!(peer.listen("127.0.0.1:26").unwrap().0 > udp, "ids are never reused");
        peer.stop(&[id]);
        assert!(TcpStream::connect("127.0.0.1:25").is_err());
    });
}

#[test]
fn a_refused_request_adopts_nothing() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:1-65535" )"#) + "broker { retain = 8 }";
        let mut first = Broker::start(host, &text);
        let mut peer = first.peer();
        let (id, _) = peer.listen("127.0.0.1:25").unwrap();
        let second = first.start_successor(host, &text);
        assert!(first.wait_for_exit().success());
        let mut peer = second.peer();
        let all_or_nothing = ListenMany::truncated(true, ["127.0.0.1:25", "192.0.2.1:25"].map(listen));
        let (reply, sockets) = peer.request(&all_or_nothing).unwrap();
        assert!(sockets.is_empty() && reply.results.iter().all(|result| result.fault().is_some()));
        let mut other = listen("127.0.0.1:25");
        other.options.backlog = Some(7);
        assert_eq!(peer.request(&other).unwrap_err().code, FaultCode::InUse);
        let rows = peer.status().listeners;
        assert_eq!((rows.len(), rows[0].id, &*rows[0].owner), (1, id, "user 0, disconnected"));
        assert!(rows[0].retained);
        // No request adopts the listener, so its retention continues.
        eventually("the end of the listener", || resources::tcp_listeners().is_empty().then_some(()));
    });
}

#[test]
fn every_kind_of_listener_is_passed_on_and_those_no_longer_permitted_are_stopped() {
    isolated(|host| {
        let any = r#"( "127.0.0.1:1-65535" "/run/host/*" )"#;
        let statics = |names: &str| format!("{}ESMTP_Listener {{ {names} }}", sample::control(any));
        let mut first =
            Broker::start(host, &statics(r#"Listen "127.0.0.1:2525" {} Listen "/run/host/static.sock" {}"#));
        let mut peer = first.peer();
        let (_, stream_socket) = peer.listen("/run/host/stream.sock").unwrap();
        rustix::net::listen(&stream_socket, 5).unwrap();
        peer.listen("seqpacket:/run/host/packets.sock").unwrap();
        peer.listen("127.0.0.1:25").unwrap();
        peer.listen("127.0.0.1:26").unwrap();
        // A new static listener, one in place of a user's, and one that is no longer static.
        let now = statics(
            r#"Listen "127.0.0.1:2526" {} Listen "127.0.0.1:25" {} Listen "/run/host/static.sock" {}"#,
        );
        let mut second = first.start_successor(host, &now);
        assert!(first.wait_for_exit().success());
        let mut peer = second.peer();
        let rows = peer.status().listeners.into_vec();
        let shown: Vec<String> = rows.iter().map(|row| format!("{} {}", row.endpoint, row.owner)).collect();
        assert_eq!(
            shown,
            [
                "127.0.0.1:2525 worker",
                "/run/host/static.sock static ESMTP_Listener",
                "/run/host/stream.sock user 0, disconnected",
                "seqpacket:/run/host/packets.sock user 0, disconnected",
                "127.0.0.1:26 user 0, disconnected",
                "127.0.0.1:2526 static ESMTP_Listener",
                "127.0.0.1:25 static ESMTP_Listener",
            ]
        );
        let (stream, _) = peer.listen("/run/host/stream.sock").unwrap();
        let _client = std::os::unix::net::UnixStream::connect("/run/host/stream.sock").unwrap();
        peer.stop(&[stream]);
        assert!(!host.path("stream.sock").exists(), "the new broker removes its file");

        let mut third = second.start_successor(host, &sample::control(r#"( "127.0.0.1:26" )"#));
        assert!(second.wait_for_exit().success());
        third.log.wait_for(&["no longer permitted", "127.0.0.1:25"]);
        assert!(TcpStream::connect("127.0.0.1:25").is_err());
        let _client = TcpStream::connect("127.0.0.1:26").unwrap();
        assert!(third.terminate().success());
        assert!(resources::tcp_listeners().is_empty() && !std::path::Path::new(SOCKET).exists());
    });
}

#[test]
fn an_address_answers_through_takeovers_and_ends_with_its_lease() {
    isolated(|host| {
        lan::create(&["far"]);
        let text = sample::addresses("");
        let mut broker = Broker::start(host, &text);
        let mut peer = broker.peer();
        let mut wire = PacketCapture::on("far");
        peer.add_address("10.1.1.8", |add| (add.lease, add.epoch) = (Some(600), 9)).unwrap();
        peer.request(&RemoveAddress { addresses: one_address("10.1.1.8"), epoch: 9 }).unwrap();
        peer.add_address("10.1.1.7", |add| (add.lease, add.epoch) = (Some(30), 5)).unwrap();
        let over = AtomicBool::new(false);
        let requests = std::thread::scope(|scope| {
            let prober = scope.spawn(|| {
                let mut requests = 0;
                while !over.load(Ordering::Relaxed) {
                    wire.send(&hex(ARP_QUERY));
                    let answers = wire.collect(TIMEOUT, is_arp_reply, |frames| !frames.is_empty());
                    assert!(!answers.is_empty(), "request {requests} was not answered");
                    requests += 1;
                }
                requests
            });
            for _ in 0..4 {
                broker.replace(host, &text);
                peer = broker.peer();
                peer.renew_address("10.1.1.7").map(drop).unwrap_err();
                let renew = RenewAddress {
                    addresses: one_address("10.1.1.7"),
                    lease: None,
                    epoch: 5,
                    ..RenewAddress::default()
                };
                let (renewed, _) = peer.request(&renew).unwrap();
                assert!(
                    matches!(&renewed.results[..], [Outcome::Done(lease)] if lease.epoch == 5),
                    "{renewed:?}"
                );
            }
            over.store(true, Ordering::Relaxed);
            prober.join().unwrap()
        });
        println!("{requests} requests, each answered");
        for (address, epoch) in [("10.1.1.7", 4), ("10.1.1.8", 8)] {
            let fault = peer.add_address(address, |add| add.epoch = epoch).unwrap_err();
            assert_eq!(fault.code, FaultCode::Expired, "{fault}");
        }

        let renew = RenewAddress {
            addresses: one_address("10.1.1.7"),
            lease: Some(4),
            epoch: 5,
            ..RenewAddress::default()
        };
        let before = Instant::now();
        peer.request(&renew).unwrap();
        let after = Instant::now();
        let next = broker.start_successor(host, &text);
        let (mut successor, passed) = (next.peer(), after.elapsed());
        let remaining =
            successor.request(&ListAddresses { after: None }).unwrap().0.addresses[0].lease.remaining_ms;
        assert!(
            Duration::from_millis(remaining) + passed <= Duration::from_millis(4_001),
            "{remaining} ms after {passed:?}"
        );
        // The address is silent at the time that the first broker set, although the second broker is suspended.
        next.suspend();
        let last = last_arp_reply(&mut wire, before).expect("an answer while the lease lasts");
        assert!(
            last <= Duration::from_secs(4) + (after - before) + TICK,
            "answered after the lease: {last:?}"
        );
        next.signal(Signal::CONT);
        eventually("the removal of the address", || lan::show_address("10.1.1.7").is_none().then_some(()));
        next.log.wait_for(&["lease expired without a renewal", "10.1.1.7"]);
    });
}
