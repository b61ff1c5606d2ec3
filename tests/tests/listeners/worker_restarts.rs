//! Workers that end at any moment: the next worker gets their listeners, and nothing is left behind.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use portreeve_protocol::channel::ReceiveError;
use portreeve_tests::peer::listen;
use portreeve_tests::process::kill;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, eventually, exclusive, isolated, process, resources, sample};
use rustix::process::Signal;

/// Counts every worker as stable at once, because the tests kill workers often.
const ALWAYS_STABLE: &str = "worker { stable_after = 0 }";

fn start_scripted_worker(host: &Host) -> (WorkerSetup, Broker) {
    let setup = WorkerSetup::new(host, "chroot");
    let rest = format!(
        r#"broker {{ retain = 1 permit "any" {{ listen = ( "127.0.0.1:1-65535" ) }} }}{ALWAYS_STABLE}"#
    );
    let broker =
        Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest));
    (setup, broker)
}

#[test]
fn a_worker_killed_in_any_phase_of_a_request_leaves_no_listener() {
    isolated(|host| {
        let (setup, broker) = start_scripted_worker(host);
        let (mut scripted, mut peer) = setup.accept();
        peer.hello();
        let before = broker.descriptors();
        let request = listen("127.0.0.1:25");
        for phase in ["before it is sent", "before it is received", "unread", "read", "among many"] {
            let worker = broker.worker();
            match phase {
                "before it is received" => {
                    broker.suspend();
                    peer.send(&request);
                    kill(worker);
                    eventually("the worker's end", || (!process::is_running(worker)).then_some(()));
                    broker.signal(Signal::CONT);
                }
                "unread" => {
                    peer.send(&request);
                    eventually("the listener", || (resources::tcp_listeners().len() == 1).then_some(()));
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
            drop((scripted, peer));
            (scripted, peer) = setup.accept();
            peer.hello();
            eventually(phase, || resources::tcp_listeners().is_empty().then_some(()));
            assert_eq!(peer.status().listeners_held, 0, "{phase}");
            broker.await_no_leak(&before);
        }
    });
}

#[test]
fn a_repeated_request_after_a_lost_reply_returns_the_same_listener() {
    isolated(|host| {
        let (setup, broker) = start_scripted_worker(host);
        let (scripted, mut first) = setup.accept();
        first.hello();
        first.send(&listen("127.0.0.1:25"));
        let id = {
            let reply = first.receive().unwrap().reply::<portreeve_protocol::message::Listen>();
            // The sockets are dropped here, as with a reply that was never read.
            reply.unwrap().0.id
        };
        kill(broker.worker());
        drop((scripted, first));
        let (_scripted, mut second) = setup.accept();
        second.hello();
        assert_eq!(second.listen("127.0.0.1:25").unwrap().0, id);
        assert_eq!(second.listen("127.0.0.1:25").unwrap().0, id);
        assert_eq!(second.status().listeners_held, 1);
    });
}

#[test]
fn the_session_of_a_dead_worker_ends_even_if_its_channel_stays_open() {
    isolated(|host| {
        let (setup, broker) = start_scripted_worker(host);
        let (scripted, mut first) = setup.accept();
        first.hello();
        let (id, kept) = first.listen("127.0.0.1:25").unwrap();
        kill(broker.worker());
        assert!(matches!(first.receive(), Err(ReceiveError::Closed)));
        let (_scripted, mut second) = setup.accept();
        second.hello();
        assert_eq!(second.listen("127.0.0.1:25").unwrap().0, id);
        assert_eq!(second.status().sessions.len(), 1);
        drop((scripted, kept));
    });
}

#[test]
fn a_worker_without_a_session_keeps_its_listeners_while_it_lives() {
    isolated(|host| {
        let (setup, broker) = start_scripted_worker(host);
        let (scripted, mut first) = setup.accept();
        first.hello();
        let (id, listener) = first.listen("127.0.0.1:25").unwrap();
        let worker = broker.worker();
        portreeve_protocol::channel::send_bytes(&first.channel, b"nonsense").unwrap();
        assert!(first.is_disconnected());
        broker.log.wait_for(&["still runs"]);
        // Longer than the retention time.
        std::thread::sleep(Duration::from_millis(1500));
        assert!(process::is_running(worker));
        let client = TcpStream::connect("127.0.0.1:25").unwrap();
        std::net::TcpListener::from(listener).accept().unwrap();
        kill(worker);
        drop((scripted, client));
        let (_scripted, mut second) = setup.accept();
        second.hello();
        assert_eq!(second.listen("127.0.0.1:25").unwrap().0, id);
    });
}

#[test]
fn a_worker_that_ends_before_its_hello_is_restarted_and_peers_are_served() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let rest = format!("{}{ALWAYS_STABLE}", sample::socket(r#"( "127.0.0.1:25" )"#));
        let command = r#"( /run/host/bin/scripted_worker "descriptors" )"#;
        let mut broker = Broker::start(host, &sample::worker(&setup.chroot, command, &rest));
        let mut peer = broker.peer();
        let before = broker.descriptors();
        broker.log.wait_for(&["exited with code 0"]);
        broker.log.wait_for(&["the worker runs", "restarts=3"]);
        peer.ping();
        eventually("no worker's descriptors", || {
            broker.descriptors().not_in(&before).is_empty().then_some(())
        });
        let status = broker.terminate();
        assert!(status.success(), "{status}");
    });
}

#[test]
fn the_broker_ends_at_once_if_the_launcher_dies_while_no_worker_runs() {
    exclusive(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let command = r#"( /run/host/bin/scripted_worker "descriptors" )"#;
        let mut broker = Broker::start(host, &sample::worker(&setup.chroot, command, ""));
        // Each restart delay doubles: the next one is 6.4 s.
        broker.log.wait_for(&["the worker runs", "restarts=6"]);
        eventually("the worker's end", || {
            let ends =
                broker.log.lines().iter().filter(|line| line.contains("the worker has exited")).count();
            (ends == 7).then_some(())
        });
        kill(broker.launcher());
        let start = Instant::now();
        let status = broker.wait_for_exit();
        println!("the broker ended after {:?}: {status}", start.elapsed());
        // Where process ids go up to 4,194,304, it looks for processes of the worker among them for up to 2 s.
        assert!(!status.success() && start.elapsed() < Duration::from_secs(5), "{status}");
        broker.log.wait_for(&["launcher", "lost"]);
    });
}
