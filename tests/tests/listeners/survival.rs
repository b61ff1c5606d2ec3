//! Workers that end, at every moment: what they asked for is kept for the next one, and nothing is left behind.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use portreeve_protocol::channel::ReceiveError;
use portreeve_tests::peer::listen;
use portreeve_tests::puppet::Stage;
use portreeve_tests::{Broker, Host, alone, census, eventually, isolated, process, sample};
use rustix::process::{Pid, Signal, kill_process};

/// A worker of a test is killed more often than one that should give up.
const RESTLESS: &str = "worker { stable_after = 0 }";

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

fn puppets(host: &Host) -> (Stage, Broker) {
    let stage = Stage::new(host, "chroot");
    let rest =
        format!(r#"broker {{ retain = 1 permit "any" {{ listen = ( "127.0.0.1:1-65535" ) }} }}{RESTLESS}"#);
    let broker = Broker::start(host, &sample::worker(&stage.chroot, "( /run/host/bin/puppet )", &rest));
    (stage, broker)
}

#[test]
fn a_worker_killed_in_any_phase_of_a_request_leaves_no_listener() {
    isolated(|host| {
        let (stage, broker) = puppets(host);
        let (mut puppet, mut peer) = stage.enter();
        peer.hello();
        let before = broker.census();
        let request = listen("127.0.0.1:25");
        for phase in ["before it is sent", "before it is received", "unread", "read", "among many"] {
            let worker = broker.worker();
            match phase {
                "before it is received" => {
                    broker.suspend();
                    peer.send(&request);
                    kill(worker);
                    eventually("the worker's end", || (!process::runs(worker)).then_some(()));
                    broker.signal(Signal::CONT);
                }
                "unread" => {
                    peer.send(&request);
                    eventually("the listener", || (census::listening().len() == 1).then_some(()));
                    kill(worker);
                }
                "read" => {
                    drop(peer.listen("127.0.0.1:25").unwrap());
                    kill(worker);
                }
                "among many" => {
                    for port in 3000..3050 {
                        peer.send(&listen(&format!("127.0.0.1:{port}")));
                    }
                    kill(worker);
                }
                _ => kill(worker),
            }
            drop((puppet, peer));
            (puppet, peer) = stage.enter();
            peer.hello();
            eventually(phase, || census::listening().is_empty().then_some(()));
            assert_eq!(peer.status().listeners_held, 0, "{phase}");
            broker.await_no_more_than(&before);
        }
    });
}

#[test]
fn a_request_whose_reply_was_lost_gives_the_same_listener_when_it_is_made_again() {
    isolated(|host| {
        let (stage, broker) = puppets(host);
        let (puppet, mut first) = stage.enter();
        first.hello();
        first.send(&listen("127.0.0.1:25"));
        let id = {
            let reply = first.receive().unwrap().reply::<portreeve_protocol::message::Listen>();
            // The sockets are lost here, as with a reply that was never read.
            reply.unwrap().0.id
        };
        kill(broker.worker());
        drop((puppet, first));
        let (_puppet, mut second) = stage.enter();
        second.hello();
        assert_eq!(second.listen("127.0.0.1:25").unwrap().0, id);
        assert_eq!(second.listen("127.0.0.1:25").unwrap().0, id);
        assert_eq!(second.status().listeners_held, 1);
    });
}

#[test]
fn the_session_of_a_dead_worker_ends_though_somebody_keeps_its_channel() {
    isolated(|host| {
        let (stage, broker) = puppets(host);
        let (puppet, mut first) = stage.enter();
        first.hello();
        let (id, kept) = first.listen("127.0.0.1:25").unwrap();
        kill(broker.worker());
        assert!(matches!(first.receive(), Err(ReceiveError::Closed)));
        let (_puppet, mut second) = stage.enter();
        second.hello();
        assert_eq!(second.listen("127.0.0.1:25").unwrap().0, id);
        assert_eq!(second.status().sessions.len(), 1);
        drop((puppet, kept));
    });
}

#[test]
fn a_worker_that_lost_its_session_keeps_its_listeners_as_long_as_it_lives() {
    isolated(|host| {
        let (stage, broker) = puppets(host);
        let (puppet, mut first) = stage.enter();
        first.hello();
        let (id, listener) = first.listen("127.0.0.1:25").unwrap();
        let worker = broker.worker();
        portreeve_protocol::channel::send_bytes(&first.channel, b"nonsense").unwrap();
        assert!(first.is_cut_off());
        broker.log.wait_for(&["still runs"]);
        // Longer than listeners outlive a worker.
        std::thread::sleep(Duration::from_millis(1500));
        assert!(process::runs(worker));
        let client = TcpStream::connect("127.0.0.1:25").unwrap();
        std::net::TcpListener::from(listener).accept().unwrap();
        kill(worker);
        drop((puppet, client));
        let (_puppet, mut second) = stage.enter();
        second.hello();
        assert_eq!(second.listen("127.0.0.1:25").unwrap().0, id);
    });
}

#[test]
fn a_worker_that_ends_before_its_hello_is_started_again_and_others_are_served() {
    isolated(|host| {
        let stage = Stage::new(host, "chroot");
        let rest = format!("{}{RESTLESS}", sample::socket(r#"( "127.0.0.1:25" )"#));
        let command = r#"( /run/host/bin/puppet "descriptors" )"#;
        let mut broker = Broker::start(host, &sample::worker(&stage.chroot, command, &rest));
        let mut peer = broker.peer();
        let before = broker.census();
        broker.log.wait_for(&["exited with code 0"]);
        broker.log.wait_for(&["the worker runs", "restarts=3"]);
        peer.ping();
        eventually("no worker's descriptors", || broker.census().beyond(&before).is_empty().then_some(()));
        let status = broker.terminate();
        assert!(status.success(), "{status}");
    });
}

#[test]
fn a_launcher_that_dies_while_no_worker_runs_ends_the_broker_at_once() {
    alone(|host| {
        let stage = Stage::new(host, "chroot");
        let command = r#"( /run/host/bin/puppet "descriptors" )"#;
        let mut broker = Broker::start(host, &sample::worker(&stage.chroot, command, ""));
        // Each pause is twice the one before: the next one has 3.2 s.
        broker.log.wait_for(&["the worker runs", "restarts=5"]);
        eventually("the worker's end", || {
            let ends =
                broker.log.lines().iter().filter(|line| line.contains("the worker has exited")).count();
            (ends == 6).then_some(())
        });
        kill(broker.launcher());
        let start = Instant::now();
        let status = broker.ended();
        println!("the broker ended after {:?}: {status}", start.elapsed());
        assert!(!status.success() && start.elapsed() < Duration::from_millis(1500), "{status}");
        broker.log.wait_for(&["launcher", "lost"]);
    });
}
