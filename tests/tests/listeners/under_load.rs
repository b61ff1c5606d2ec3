//! Killed workers and floods of signals while clients connect: every client is served.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portreeve_tests::smtp_load::{self, BATCH, SmtpLoad};
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, Host, eventually, isolated, process, resources};
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

fn mail_server(host: &Host) -> Broker {
    Broker::start(host, &smtp_load::mail_server(host))
}

/// Waits for a worker other than this one.
fn successor(launcher: u32, last: u32) -> u32 {
    eventually("the next worker", || process::children(launcher).into_iter().find(|pid| *pid != last))
}

#[test]
fn killing_the_worker_a_hundred_times_refuses_no_client() {
    const CLIENTS: usize = 2;
    // Set PORTREEVE_KILLS for more: a thousand fit in the time limit of a test.
    let kills = std::env::var("PORTREEVE_KILLS").map_or(100, |text| text.parse().unwrap());
    isolated(|host| {
        let broker = mail_server(host);
        let launcher = broker.launcher();
        eventually("the listener", || (resources::tcp_listeners().len() == 1).then_some(()));
        let before = broker.descriptors();
        let id = broker.peer().status().listeners[0].id;
        let load = SmtpLoad::default();
        let started = Instant::now();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| load.run_client())).collect();
            let mut worker = broker.worker();
            for _ in 0..kills {
                let greeted = load.greeted();
                eventually("clients that are greeted", || {
                    let failed = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                    (failed || load.greeted() > greeted + 100).then_some(())
                });
                kill(worker);
                worker = successor(launcher, worker);
            }
            load.stop();
        });
        let (greeted, cut_off) = (load.greeted(), load.disconnected());
        let rate = greeted as f64 / started.elapsed().as_secs_f64();
        println!(
            "{kills} kills: {greeted} clients greeted ({rate:.0} a second), {cut_off} cut off, 0 refused"
        );
        // Only clients that a worker had accepted when it was killed.
        assert!(cut_off <= kills * CLIENTS * BATCH, "{cut_off} clients were cut off");
        let listeners = eventually("the adoption", || {
            let listeners = broker.peer().status().listeners;
            (!listeners.iter().any(|listener| listener.retained)).then_some(listeners)
        });
        assert_eq!((listeners.len(), listeners[0].id), (1, id));
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_flood_of_signals_changes_no_result() {
    isolated(|host| {
        let broker = mail_server(host);
        eventually("the listener", || (resources::tcp_listeners().len() == 1).then_some(()));
        let all = [broker.pid(), broker.launcher(), broker.worker()];
        let before = broker.descriptors();
        let over = AtomicBool::new(false);
        let sent = AtomicUsize::new(0);
        let flood = || {
            // SIGSTOP and SIGCONT interrupt waits with EINTR (signal(7)); the others are ignored by default.
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
            scope.spawn(flood);
            for port in 4000..4200 {
                let mut peer = broker.peer();
                let endpoint = format!("127.0.0.1:{port}");
                let (id, _) = peer.listen(&endpoint).unwrap();
                assert_eq!(peer.listen(&endpoint).unwrap().0, id);
                assert!(peer.listen("192.0.2.1:25").is_err());
                assert!(peer.stop(&[id]).unknown.is_empty());
                let mut client = TcpStream::connect("127.0.0.1:25").unwrap();
                client.set_read_timeout(Some(TIMEOUT)).unwrap();
                let mut greeting = [0; 3];
                client.read_exact(&mut greeting).unwrap();
                assert_eq!(&greeting, b"220");
            }
            over.store(true, Ordering::Relaxed);
        });
        println!("{} signals", sent.load(Ordering::Relaxed));
        assert_eq!([broker.pid(), broker.launcher(), broker.worker()], all);
        assert_eq!(resources::tcp_listeners().len(), 1);
        broker.await_no_leak(&before);
    });
}
