//! Workers that are killed, at every moment, while clients come: who connects is served, and nothing is left behind.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portreeve_protocol::channel::ReceiveError;
use portreeve_tests::chroot::Chroot;
use portreeve_tests::peer::listen;
use portreeve_tests::puppet::Stage;
use portreeve_tests::wait::PATIENCE;
use portreeve_tests::{Broker, Host, census, eventually, isolated, process, sample};
use rustix::process::{Pid, Signal, kill_process};

/// A worker of a test is killed more often than one that should give up.
const RESTLESS: &str = "worker { stable_after = 0 }";

/// How many connections one client opens before it reads from the first.
const CROWD: usize = 16;

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

fn mail_server(host: &Host) -> Broker {
    let chroot = Chroot::new(host, "chroot");
    chroot.worker_directory("/Maildir");
    let command = r#"( /run/host/bin/smtp_worker "--listen" "127.0.0.1:25" )"#;
    let rest = format!("{}{RESTLESS}", sample::socket(r#"( "127.0.0.1:1-65535" )"#));
    Broker::start(host, &sample::worker(&chroot, command, &rest))
}

fn puppets(host: &Host) -> (Stage, Broker) {
    let stage = Stage::new(host, "chroot");
    let rest =
        format!(r#"broker {{ retain = 1 permit "any" {{ listen = ( "127.0.0.1:1-65535" ) }} }}{RESTLESS}"#);
    let broker = Broker::start(host, &sample::worker(&stage.chroot, "( /run/host/bin/puppet )", &rest));
    (stage, broker)
}

/// Waits for a worker that is not this one.
fn successor(launcher: u32, last: u32) -> u32 {
    eventually("the next worker", || process::children(launcher).into_iter().find(|pid| *pid != last))
}

/// What became of the clients.
#[derive(Default)]
struct Tally {
    enough: AtomicBool,
    greeted: AtomicUsize,
    cut_off: AtomicUsize,
}

impl Tally {
    /// Comes in crowds, again and again, until it is enough. Not one may be refused.
    fn come(&self) {
        let server = SocketAddr::from(([127, 0, 0, 1], 25));
        while !self.enough.load(Ordering::Relaxed) {
            let crowd: [TcpStream; CROWD] = std::array::from_fn(|_| {
                TcpStream::connect_timeout(&server, PATIENCE)
                    .unwrap_or_else(|error| panic!("a client could not connect: {error}"))
            });
            crowd.into_iter().for_each(|client| self.greet(client));
        }
    }

    fn greet(&self, mut client: TcpStream) {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        match client.read(&mut [0; 64]) {
            Ok(length) if length > 0 => self.greeted.fetch_add(1, Ordering::Relaxed),
            Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                panic!("a client was not greeted: {error}")
            }
            // The worker that had taken it was killed.
            _ => self.cut_off.fetch_add(1, Ordering::Relaxed),
        };
    }
}

#[test]
fn killing_the_worker_a_hundred_times_refuses_no_client() {
    const CLIENTS: usize = 2;
    // More of them by hand: a thousand fit in a test's time.
    let kills = std::env::var("PORTREEVE_KILLS").map_or(100, |text| text.parse().unwrap());
    isolated(|host| {
        let broker = mail_server(host);
        let launcher = broker.launcher();
        eventually("the listener", || (census::listening().len() == 1).then_some(()));
        let before = broker.census();
        let id = broker.peer().status().listeners[0].id;
        let tally = Tally::default();
        let started = Instant::now();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| tally.come())).collect();
            let mut worker = broker.worker();
            for _ in 0..kills {
                let greeted = tally.greeted.load(Ordering::Relaxed);
                eventually("clients that are greeted", || {
                    let failed = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                    (failed || tally.greeted.load(Ordering::Relaxed) > greeted + 100).then_some(())
                });
                kill(worker);
                worker = successor(launcher, worker);
            }
            tally.enough.store(true, Ordering::Relaxed);
        });
        let [greeted, cut_off] = [&tally.greeted, &tally.cut_off].map(|count| count.load(Ordering::Relaxed));
        let rate = greeted as f64 / started.elapsed().as_secs_f64();
        println!(
            "{kills} kills: {greeted} clients greeted ({rate:.0} a second), {cut_off} cut off, 0 refused"
        );
        // Only those that a worker had taken when it was killed.
        assert!(cut_off <= kills * CLIENTS * CROWD, "{cut_off} clients were cut off");
        let listeners = eventually("the adoption", || {
            let listeners = broker.peer().status().listeners;
            (!listeners.iter().any(|listener| listener.retained)).then_some(listeners)
        });
        assert_eq!((listeners.len(), listeners[0].id), (1, id));
        broker.await_no_more_than(&before);
    });
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
                    broker.signal(Signal::STOP);
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
        portreeve_protocol::channel::send_bare(&first.channel, b"nonsense").unwrap();
        assert!(first.is_cut_off());
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
fn a_storm_of_signals_changes_no_outcome() {
    isolated(|host| {
        let broker = mail_server(host);
        eventually("the listener", || (census::listening().len() == 1).then_some(()));
        let all = [broker.pid(), broker.launcher(), broker.worker()];
        let before = broker.census();
        let over = AtomicBool::new(false);
        let sent = AtomicUsize::new(0);
        let storm = || {
            // Stopping and going on ends waits with EINTR (signal(7)); the others are ignored unless they are caught.
            let signals = [Signal::STOP, Signal::CONT, Signal::CHILD, Signal::URG, Signal::WINCH];
            while !over.load(Ordering::Relaxed) {
                for signal in signals {
                    for pid in all {
                        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
                    }
                }
                sent.fetch_add(signals.len() * all.len(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(storm);
            for port in 4000..4200 {
                let mut peer = broker.peer();
                let endpoint = format!("127.0.0.1:{port}");
                let (id, _) = peer.listen(&endpoint).unwrap();
                assert_eq!(peer.listen(&endpoint).unwrap().0, id);
                assert!(peer.listen("192.0.2.1:25").is_err());
                assert!(peer.stop(&[id]).unknown.is_empty());
                let mut client = TcpStream::connect("127.0.0.1:25").unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut greeting = [0; 3];
                client.read_exact(&mut greeting).unwrap();
                assert_eq!(&greeting, b"220");
            }
            over.store(true, Ordering::Relaxed);
        });
        println!("{} signals", sent.load(Ordering::Relaxed));
        assert_eq!([broker.pid(), broker.launcher(), broker.worker()], all);
        assert_eq!(census::listening().len(), 1);
        broker.await_no_more_than(&before);
    });
}

#[test]
fn a_launcher_that_dies_while_no_worker_runs_ends_the_broker_at_once() {
    isolated(|host| {
        let stage = Stage::new(host, "chroot");
        let command = r#"( /run/host/bin/puppet "descriptors" )"#;
        let mut broker = Broker::start(host, &sample::worker(&stage.chroot, command, ""));
        // Each pause is twice the one before: the next one has 3.2 s.
        broker.log.wait_for(&["the worker runs", "restarts=5"]);
        eventually("the worker's end", || {
            let ends = broker.log.lines().iter().filter(|line| line.contains("the worker is gone")).count();
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
