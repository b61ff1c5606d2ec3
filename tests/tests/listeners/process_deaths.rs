//! The listeners of workers, launchers, peers and brokers that end.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use portreeve_protocol::channel::ReceiveError;
use portreeve_tests::peer::listen;
use portreeve_tests::process::kill;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, eventually, isolated, process, resources, sample};
use rustix::process::Signal;

const MAIL: &str = r#"broker { retain = 1 permit "mail" { listen = ( "127.0.0.1:25" ) } }"#;

fn start(host: &Host) -> (WorkerSetup, Broker) {
    let setup = WorkerSetup::new(host, "chroot");
    let broker =
        Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", MAIL));
    (setup, broker)
}

fn inode(descriptor: impl AsFd) -> u64 {
    rustix::fs::fstat(descriptor).unwrap().st_ino
}

/// Accepts a client that connected before, and greets it.
fn greet(listener: OwnedFd, mut client: TcpStream) {
    let (mut served, _) = TcpListener::from(listener).accept().unwrap();
    served.write_all(b"220").unwrap();
    let mut greeting = [0; 3];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220");
}

#[test]
fn the_next_worker_adopts_the_same_socket_with_its_waiting_clients() {
    isolated(|host| {
        let (setup, broker) = start(host);
        let (scripted, mut first) = setup.accept();
        first.hello();
        let (_, listener) = first.listen("127.0.0.1:25").unwrap();
        let socket = inode(&listener);
        kill(broker.worker());
        drop((listener, first, scripted));
        let waiting = TcpStream::connect("127.0.0.1:25").unwrap();
        let (_scripted, mut second) = setup.accept();
        second.hello();
        let (_, listener) = second.listen("127.0.0.1:25").unwrap();
        assert_eq!(inode(&listener), socket);
        greet(listener, waiting);
        // An adopted listener no longer expires.
        assert!(!second.status().listeners.iter().any(|listener| listener.retained));
    });
}

#[test]
fn a_listener_that_the_next_worker_does_not_request_ends_after_retention() {
    isolated(|host| {
        let (setup, broker) = start(host);
        let (scripted, mut first) = setup.accept();
        first.hello();
        let before = broker.descriptors();
        drop(first.listen("127.0.0.1:25").unwrap());
        kill(broker.worker());
        drop((first, scripted));
        let _second = setup.accept();
        eventually("the end of the listener", || resources::tcp_listeners().is_empty().then_some(()));
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_worker_killed_before_it_reads_its_reply_leaves_no_listener() {
    isolated(|host| {
        let (setup, broker) = start(host);
        let (scripted, mut first) = setup.accept();
        first.hello();
        let before = broker.descriptors();
        first.send(&listen("127.0.0.1:25"));
        kill(broker.worker());
        drop((first, scripted));
        let (_scripted, mut second) = setup.accept();
        second.hello();
        eventually("the end of the listener", || resources::tcp_listeners().is_empty().then_some(()));
        broker.await_no_leak(&before);
        second.listen("127.0.0.1:25").unwrap();
    });
}

#[test]
fn a_peer_that_disconnects_before_it_reads_its_reply_leaves_no_listener() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:1-65535" )"#));
        let before = broker.descriptors();
        for port in 2000..2100 {
            broker.peer().send(&listen(&format!("127.0.0.1:{port}")));
        }
        eventually("the end of the listeners", || resources::tcp_listeners().is_empty().then_some(()));
        broker.await_no_leak(&before);
    });
}

#[test]
fn the_broker_ends_with_an_error_if_its_launcher_dies() {
    isolated(|host| {
        let (setup, mut broker) = start(host);
        let _worker = setup.accept();
        kill(broker.launcher());
        let status = broker.wait_for_exit();
        assert!(!status.success(), "{status}");
        broker.log.wait_for(&["launcher"]);
    });
}

#[test]
fn a_worker_keeps_its_listeners_for_orphan_timeout_if_the_broker_is_killed() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let rest = MAIL.to_owned() + "worker { orphan_timeout = 3600 }";
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest);
        let broker = Broker::start(host, &text);
        let (mut scripted, mut channel) = setup.accept();
        channel.hello();
        let (_, listener) = channel.listen("127.0.0.1:25").unwrap();
        let worker = broker.worker();
        broker.signal(Signal::KILL);
        assert!(matches!(channel.receive(), Err(ReceiveError::Closed)));
        let client = TcpStream::connect("127.0.0.1:25").unwrap();
        greet(listener, client);
        assert_eq!(scripted.run("descriptors"), "0 1 2 3:channel");
        assert!(process::is_running(worker));
    });
}
