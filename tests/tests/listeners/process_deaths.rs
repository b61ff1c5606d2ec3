//! Workers, launchers, peers and brokers that end, and what happens to their listeners.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use portreeve_protocol::channel::ReceiveError;
use portreeve_tests::peer::listen;
use portreeve_tests::puppet::Stage;
use portreeve_tests::{Broker, Host, census, eventually, isolated, process, sample};
use rustix::process::{Pid, Signal, kill_process};

const MAIL: &str = r#"broker { retain = 1 permit "mail" { listen = ( "127.0.0.1:25" ) } }"#;

fn start(host: &Host) -> (Stage, Broker) {
    let stage = Stage::new(host, "chroot");
    let broker = Broker::start(host, &sample::worker(&stage.chroot, "( /run/host/bin/puppet )", MAIL));
    (stage, broker)
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
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
        let (stage, broker) = start(host);
        let (puppet, mut first) = stage.enter();
        first.hello();
        let (_, listener) = first.listen("127.0.0.1:25").unwrap();
        let socket = inode(&listener);
        kill(broker.worker());
        drop((listener, first, puppet));
        let waiting = TcpStream::connect("127.0.0.1:25").unwrap();
        let (_puppet, mut second) = stage.enter();
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
        let (stage, broker) = start(host);
        let (puppet, mut first) = stage.enter();
        first.hello();
        let before = broker.census();
        drop(first.listen("127.0.0.1:25").unwrap());
        kill(broker.worker());
        drop((first, puppet));
        let _second = stage.enter();
        eventually("the end of the listener", || census::listening().is_empty().then_some(()));
        broker.await_no_more_than(&before);
    });
}

#[test]
fn a_worker_killed_before_it_reads_its_reply_leaves_no_listener() {
    isolated(|host| {
        let (stage, broker) = start(host);
        let (puppet, mut first) = stage.enter();
        first.hello();
        let before = broker.census();
        first.send(&listen("127.0.0.1:25"));
        kill(broker.worker());
        drop((first, puppet));
        let (_puppet, mut second) = stage.enter();
        second.hello();
        eventually("the end of the listener", || census::listening().is_empty().then_some(()));
        broker.await_no_more_than(&before);
        second.listen("127.0.0.1:25").unwrap();
    });
}

#[test]
fn a_peer_that_disconnects_before_it_reads_its_reply_leaves_no_listener() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:1-65535" )"#));
        let before = broker.census();
        for port in 2000..2100 {
            broker.peer().send(&listen(&format!("127.0.0.1:{port}")));
        }
        eventually("the end of the listeners", || census::listening().is_empty().then_some(()));
        broker.await_no_more_than(&before);
    });
}

#[test]
fn the_broker_ends_with_an_error_if_its_launcher_dies() {
    isolated(|host| {
        let (stage, mut broker) = start(host);
        let _worker = stage.enter();
        kill(broker.launcher());
        let status = broker.ended();
        assert!(!status.success(), "{status}");
        broker.log.wait_for(&["launcher"]);
    });
}

#[test]
fn a_worker_keeps_its_listeners_if_the_broker_is_killed() {
    isolated(|host| {
        let (stage, broker) = start(host);
        let (mut puppet, mut channel) = stage.enter();
        channel.hello();
        let (_, listener) = channel.listen("127.0.0.1:25").unwrap();
        let worker = broker.worker();
        broker.signal(Signal::KILL);
        assert!(matches!(channel.receive(), Err(ReceiveError::Closed)));
        let client = TcpStream::connect("127.0.0.1:25").unwrap();
        greet(listener, client);
        assert_eq!(puppet.tell("descriptors"), "0 1 2 3:channel");
        assert!(process::runs(worker));
    });
}
