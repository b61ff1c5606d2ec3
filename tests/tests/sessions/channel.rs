//! Channels with malicious peers, fast peers and peers that run out of resources.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::Command;

use portreeve_protocol::channel;
use portreeve_protocol::message::{Hello, Listen, ListenMany, Operation as _, Ping};
use portreeve_protocol::{FaultCode, Text, codec};
use portreeve_tests::peer::listen;
use portreeve_tests::{Broker, Peer, binaries, broker, exclusive, isolated, sample};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const ANYWHERE: &str = r#"( "127.0.0.1:1-65535" )"#;

#[test]
fn a_descriptor_attached_to_a_request_ends_only_that_session() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut bystander = broker.peer();
        bystander.listen("127.0.0.1:25").unwrap();
        let before = broker.descriptors();
        for count in [1, 2, 253] {
            let mut peer = broker.peer();
            attach(&peer, count);
            assert!(peer.is_disconnected(), "with {count} descriptors attached");
            bystander.ping();
        }
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_descriptor_attached_to_the_first_packet_ends_only_that_session() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut bystander = broker.peer();
        let before = broker.descriptors();
        let mut stranger = broker.connect();
        attach(&stranger, 253);
        assert!(stranger.is_disconnected());
        bystander.ping();
        broker.await_no_leak(&before);
    });
}

/// Sends a valid Ping with descriptors attached.
fn attach(peer: &Peer, count: usize) {
    let mut buffer = codec::frame_buffer();
    let packet = codec::encode(&mut buffer, Ping::KIND, 7, 0, &Ping {}).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let descriptors: Vec<BorrowedFd<'_>> = vec![file.as_fd(); count];
    channel::send(&peer.channel, packet, &descriptors).unwrap();
}

#[test]
fn pipelined_replies_match_their_requests_with_and_without_descriptors() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        let mut seed = 0x9e37_79b9_u32;
        let mut in_flight: Vec<(u32, Option<u16>)> = Vec::new();
        for port in 2000..2200 {
            // xorshift32: interleaved at random, the same in every run.
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            in_flight.extend((0..seed % 4).map(|_| (peer.send(&Ping {}), None)));
            in_flight.push((peer.send(&listen(&format!("127.0.0.1:{port}"))), Some(port)));
            if seed.is_multiple_of(8) {
                in_flight.drain(..).for_each(|expected| check(&mut peer, expected));
            }
        }
        in_flight.drain(..).for_each(|expected| check(&mut peer, expected));
        drop(peer);
        broker.await_no_leak(&before);
    });
}

fn check(peer: &mut Peer, (number, port): (u32, Option<u16>)) {
    let frame = peer.receive().unwrap();
    assert_eq!(frame.header.request, number);
    match port {
        None => {
            frame.reply::<Ping>().unwrap();
        }
        Some(port) => {
            let (_, descriptors) = frame.reply::<Listen>().unwrap();
            let address = rustix::net::getsockname(&descriptors[0]).unwrap();
            let address: std::net::SocketAddr = address.try_into().unwrap();
            assert_eq!(address.port(), port);
        }
    }
}

#[test]
fn a_peer_without_room_for_a_descriptor_gets_the_same_socket_on_retry() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        let limit = getrlimit(Resource::Nofile);
        // Set the limit to the lowest free descriptor number, so that no further descriptor can be opened.
        let room = rustix::io::fcntl_dupfd_cloexec(&peer.channel, 0).unwrap();
        let full = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&room)).unwrap();
        drop(room);
        setrlimit(Resource::Nofile, Rlimit { current: Some(full), ..limit }).unwrap();
        peer.send(&listen("127.0.0.1:25"));
        let received = peer.receive().unwrap();
        setrlimit(Resource::Nofile, limit).unwrap();
        assert!(received.descriptors_lost && received.descriptors.is_empty(), "{received:?}");

        let (first_id, first) = peer.listen("127.0.0.1:25").unwrap();
        let (second_id, second) = peer.listen("127.0.0.1:25").unwrap();
        assert_eq!(first_id, second_id);
        assert_eq!(inode(&first), inode(&second));
        assert_eq!(portreeve_tests::resources::tcp_listeners().len(), 1);
        peer.stop(&[first_id]);
        broker.await_no_leak(&before);
    });
}

fn inode(descriptor: impl std::os::fd::AsFd) -> u64 {
    rustix::fs::fstat(descriptor).unwrap().st_ino
}

#[test]
fn the_broker_waits_if_too_many_descriptors_are_in_flight() {
    exclusive(|host| {
        // RLIMIT_NOFILE also limits the descriptors in flight (ETOOMANYREFS in unix(7)).
        let mut command = Command::new("prlimit");
        let config = broker::config(host, &sample::control(ANYWHERE));
        command
            .args(["--nofile=2048:2048", "--"])
            .arg(host.binary(binaries::BROKER))
            .arg("--config")
            .arg(config);
        let broker = Broker::start_command(host, command);
        let mut hoarder = broker.peer();
        let mut bystander = broker.peer();
        let before = broker.descriptors();
        let many = ListenMany::truncated(true, (3000..3253).map(|port| listen(&format!("127.0.0.1:{port}"))));
        let numbers: Vec<u32> = (0..2048 / 253 + 3).map(|_| hoarder.send(&many)).collect();
        bystander.ping();
        for number in numbers {
            let frame = hoarder.receive().unwrap();
            assert_eq!(frame.header.request, number);
            let (reply, descriptors) = frame.reply::<ListenMany>().unwrap();
            assert_eq!((reply.results.len(), descriptors.len()), (253, 253));
        }
        bystander.listen("127.0.0.1:25").unwrap();
        drop((hoarder, bystander));
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_peer_that_never_reads_delays_no_other_peer() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut deaf = broker.peer();
        let mut bystander = broker.peer();
        deaf.channel.set_nonblocking(true).unwrap();
        let mut buffer = codec::frame_buffer();
        let ping = codec::encode(&mut buffer, Ping::KIND, 1, 0, &Ping {}).unwrap();
        let mut sent = 0;
        // Send until both buffers are full: then the broker has stopped reading.
        while sent < 100_000 && channel::send_bytes(&deaf.channel, ping).is_ok() {
            sent += 1;
        }
        bystander.ping();
        bystander.listen("127.0.0.1:25").unwrap();
        deaf.channel.set_nonblocking(false).unwrap();
        assert!(deaf.receive().is_ok(), "replies that were sent can still be read");
    });
}

#[test]
fn peer_text_is_escaped_in_the_log() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut peer = broker.connect();
        let client = Text::new("evil\nname\u{1b}[2J\0").unwrap();
        peer.request(&Hello { client, features: 0 }).unwrap();
        let fault = peer.listen("192.0.2.1:25").unwrap_err();
        assert_eq!(fault.code, FaultCode::Denied, "{fault}");
        let line = broker.log.wait_for(&["192.0.2.1:25"]);
        assert!(!line.contains('\u{1b}') && !line.contains('\0'), "{line:?}");
        assert!(!broker.log.lines().iter().any(|line| line.starts_with("name")));
    });
}

#[test]
fn a_peer_without_hello_gets_nothing() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut stranger = broker.connect();
        assert!(stranger.listen("127.0.0.1:25").is_err());
        assert!(portreeve_tests::resources::tcp_listeners().is_empty());
    });
}
