//! Workers that are killed, and signals without end, while clients come: whoever connects is served.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portreeve_tests::chroot::Chroot;
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
