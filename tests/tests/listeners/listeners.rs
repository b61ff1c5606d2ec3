//! Listeners: created by policy, held, refused with a named reason, and disabled.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use portreeve_protocol::FaultCode;
use portreeve_protocol::message::{Listen, ListenMany, ListenOptions, ListenerId, Outcome};
use portreeve_tests::chroot::WORKER;
use portreeve_tests::peer::listen;
use portreeve_tests::{Broker, Peer, eventually, isolated, resources, sample};

const ANYWHERE: &str = r#"( "*:1-65535" "[::]:1-65535" )"#;
/// How long a client may wait for an answer that should be immediate.
const AT_ONCE: Duration = Duration::from_secs(2);

fn inode(descriptor: impl AsFd) -> u64 {
    rustix::fs::fstat(descriptor).unwrap().st_ino
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Serves one connection, and sends it one byte.
fn serves(listener: OwnedFd, at: SocketAddr) {
    let listener = TcpListener::from(listener);
    let mut client = TcpStream::connect_timeout(&at, AT_ONCE).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    served.write_all(b"2").unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"2");
}

#[test]
fn a_listener_on_a_privileged_port_serves_and_leaves_nothing_behind() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        for at in ["127.0.0.1:25", "[::1]:25"] {
            let (id, listener) = peer.listen(at).unwrap();
            serves(listener, address(at));
            assert!(peer.stop(&[id]).unknown.is_empty());
        }
        assert!(resources::tcp_listeners().is_empty());
        broker.await_no_leak(&before);
    });
}

#[test]
fn after_a_stop_clients_are_refused_even_if_the_worker_keeps_its_copy() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        let (id, kept) = peer.listen("127.0.0.1:25").unwrap();
        peer.stop(&[id]);
        let refused = TcpStream::connect_timeout(&address("127.0.0.1:25"), AT_ONCE).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(resources::tcp_listeners().is_empty());
        broker.await_no_leak(&before);
        drop(kept);
    });
}

#[test]
fn a_stop_resets_clients_that_wait_to_be_accepted() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut peer = broker.peer();
        let (id, _kept) = peer.listen("127.0.0.1:25").unwrap();
        let mut client = TcpStream::connect_timeout(&address("127.0.0.1:25"), AT_ONCE).unwrap();
        client.set_read_timeout(Some(AT_ONCE)).unwrap();
        peer.stop(&[id]);
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_worker_that_listens_again_on_a_stopped_copy_serves_no_client() {
    isolated(|host| {
        let mut broker = Broker::start(host, &sample::control(ANYWHERE));
        let warned = |broker: &Broker| {
            let warnings = broker.peer().status().warnings.into_vec();
            warnings.iter().any(|warning| warning.contains("not enforced"))
        };
        // If the kernel does not let the broker load a program, the broker's warning recommends this capability.
        if warned(&broker) {
            broker.terminate();
            let text = sample::control(ANYWHERE).replace("service+ep", "service,cap_net_admin+ep");
            broker = Broker::start(host, &text);
            assert!(!warned(&broker));
        }
        let mut peer = broker.peer();
        let (id, kept) = peer.listen("127.0.0.1:25").unwrap();
        peer.stop(&[id]);
        let _ = rustix::net::listen(&kept, 5); // either result is fine: no client may be served
        assert!(TcpStream::connect_timeout(&address("127.0.0.1:25"), AT_ONCE).is_err());
        let listener = TcpListener::from(kept);
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
    });
}

#[test]
fn a_stopped_endpoint_can_be_opened_again_at_once() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        for _ in 0..50 {
            let (id, listener) = peer.listen("127.0.0.1:25").unwrap();
            serves(listener, address("127.0.0.1:25"));
            peer.stop(&[id]);
        }
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_repeated_request_returns_the_same_socket() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut peer = broker.peer();
        let (first_id, first) = peer.listen("127.0.0.1:25").unwrap();
        let (second_id, second) = peer.listen("127.0.0.1:25").unwrap();
        assert_eq!((first_id, inode(first)), (second_id, inode(second)));
        assert_eq!(peer.status().listeners_held, 1);
    });
}

#[test]
fn stopping_a_listener_of_another_user_reports_it_as_unknown_and_does_nothing() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(ANYWHERE));
        let mut owner = broker.peer();
        let mut other = Peer::of_user(WORKER, WORKER);
        let (id, listener) = owner.listen("127.0.0.1:25").unwrap();
        assert_eq!(*other.stop(&[id, ListenerId(999)]).unknown, [id, ListenerId(999)]);
        serves(listener, address("127.0.0.1:25"));
    });
}

#[test]
fn listen_many_succeeds_one_by_one_or_fails_as_a_whole() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:2000-2999" )"#));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        let _taken = TcpListener::bind("127.0.0.1:2001").unwrap();
        let endpoints = ["127.0.0.1:2000", "127.0.0.1:2001", "127.0.0.1:3000", "127.0.0.1:2002"];
        let many = |all_or_nothing| ListenMany::truncated(all_or_nothing, endpoints.map(listen));
        let (reply, descriptors) = peer.request(&many(true)).unwrap();
        assert!(descriptors.is_empty());
        assert!(reply.results.iter().all(|result| matches!(result, Outcome::Fault(_))));
        assert_eq!(resources::tcp_listeners(), [address("127.0.0.1:2001")]);

        let (reply, descriptors) = peer.request(&many(false)).unwrap();
        let codes = reply.results.iter().map(|result| match result {
            Outcome::Done(_) => None,
            Outcome::Fault(fault) => Some(fault.code),
        });
        let expected = [None, Some(FaultCode::InUse), Some(FaultCode::Denied), None];
        assert_eq!(codes.collect::<Vec<_>>(), expected);
        broker.log.wait_for(&["refused", "listen-many", "127.0.0.1:3000", "is not allowed"]);
        let ports = descriptors.iter().map(|descriptor| {
            let address: SocketAddr = rustix::net::getsockname(descriptor).unwrap().try_into().unwrap();
            address.port()
        });
        assert_eq!(ports.collect::<Vec<_>>(), [2000, 2002]);
        let ids: Vec<ListenerId> = reply
            .results
            .iter()
            .filter_map(|result| match result {
                Outcome::Done(listening) => Some(listening.id),
                Outcome::Fault(_) => None,
            })
            .collect();
        peer.stop(&ids);
        broker.await_no_leak(&before);
    });
}

#[test]
fn unix_and_udp_listeners_are_created_with_their_mode() {
    isolated(|host| {
        let directory = host.path("sockets");
        std::fs::create_dir(&directory).unwrap();
        let stream = directory.join("mail.sock");
        let permits = format!(r#"( "{}" "*:53/udp" )"#, stream.display());
        let broker = Broker::start(host, &sample::control(&permits));
        let mut peer = broker.peer();
        let request = Listen {
            options: ListenOptions { mode: Some(0o622), ..ListenOptions::default() },
            ..listen(stream.to_str().unwrap())
        };
        let (reply, sockets) = peer.request(&request).unwrap();
        rustix::net::listen(&sockets[0], 5).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&stream.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o622);
        std::os::unix::net::UnixStream::connect(&stream).unwrap();
        let (udp, _socket) = peer.listen("*:53/udp").unwrap();
        assert_eq!(resources::sockets_on_port("udp", 53), 1);
        peer.stop(&[reply.id, udp]);
        assert!(std::os::unix::net::UnixStream::connect(&stream).is_err());
    });
}

#[test]
fn listeners_of_a_disconnected_peer_end_after_retention() {
    isolated(|host| {
        let config = sample::control(ANYWHERE).replace("broker {", "broker { retain = 1");
        let broker = Broker::start(host, &config);
        let before = broker.descriptors();
        let mut peer = broker.peer();
        peer.listen("127.0.0.1:25").unwrap();
        drop(peer);
        eventually("the end of the listener", || resources::tcp_listeners().is_empty().then_some(()));
        broker.await_no_leak(&before);
    });
}
