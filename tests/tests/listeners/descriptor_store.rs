//! Listeners that the service manager stores: they outlive the broker's restart and its death, and nobody is refused.

use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use portreeve_tests::broker::{self, SOCKET};
use portreeve_tests::crowd::{self, CROWD, Tally};
use portreeve_tests::manager::Manager;
use portreeve_tests::puppet::Stage;
use portreeve_tests::{Host, Peer, binaries, census, eventually, isolated, process, sample};
use rustix::process::{Pid, Signal, kill_process};

/// Room for everything.
const ROOM: usize = 64;

fn peer() -> Peer {
    let mut peer = Peer::connect(std::path::Path::new(SOCKET)).unwrap();
    peer.hello();
    peer
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

fn program(host: &Host) -> std::path::PathBuf {
    host.binary(binaries::BROKER)
}

#[test]
fn a_restart_a_killed_broker_or_a_killed_launcher_refuses_no_client_where_listeners_are_stored() {
    const RESTARTS: usize = 6;
    isolated(|host| {
        let config = broker::config(host, &crowd::mail_server(host));
        let mut manager = Manager::new(host);
        let mut service = manager.start(&program(host), &config, ROOM);
        manager.hear_of("READY=1");
        manager.hear_until("the listener", |manager| manager.store.len() == 1);
        let tally = Tally::default();
        let started = Instant::now();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| tally.come())).collect();
            for restart in 0..RESTARTS {
                let greeted = tally.greeted();
                eventually("clients that are greeted", || {
                    let failed = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                    (failed || tally.greeted() > greeted + 100).then_some(())
                });
                let launcher = process::children(service.pid())[0];
                let worker = eventually("a worker", || process::children(launcher).first().copied());
                match restart % 3 {
                    0 => {
                        service.signal(Signal::TERM);
                        manager.hear_of("STOPPING=1");
                        assert!(service.ended().success());
                    }
                    1 => service.signal(Signal::KILL),
                    // The broker ends by itself then, and says that it failed.
                    _ => {
                        kill(launcher);
                        assert!(!service.ended().success());
                        kill(worker);
                    }
                }
                service.clear();
                service = manager.start(&program(host), &config, ROOM);
                manager.hear_of("READY=1");
            }
            tally.enough();
        });
        let (greeted, cut_off) = (tally.greeted(), tally.cut_off());
        let rate = greeted as f64 / started.elapsed().as_secs_f64();
        println!(
            "{RESTARTS} restarts: {greeted} clients greeted ({rate:.0} a second), {cut_off} cut off, 0 refused"
        );
        assert!(cut_off <= RESTARTS * 2 * CROWD, "{cut_off} clients were cut off");
        let mut peer = peer();
        let adopted = eventually("the adoption", || {
            let listeners = peer.status().listeners;
            (!listeners.iter().any(|listener| listener.retained)).then_some(listeners.len())
        });
        assert_eq!((adopted, manager.store.len(), census::listening().len()), (1, 1, 1));
        service.signal(Signal::TERM);
        assert!(service.ended().success());
        // What the service manager lets go of is gone.
        manager.store.clear();
        eventually("the end of the listener", || census::listening().is_empty().then_some(()));
    });
}

#[test]
fn static_listeners_and_those_of_users_come_back_and_what_is_not_permitted_or_not_ours_is_closed() {
    isolated(|host| {
        let statics = r#"ESMTP_Listener { Listen "127.0.0.1:2525" {} Listen "/run/host/static.sock" {} }"#;
        let permitting = |listen: &str| sample::control(listen) + statics;
        let text = permitting(r#"( "127.0.0.1:1-65535" "127.0.0.1:53/udp" )"#);
        let config = broker::config(host, &text);
        let mut manager = Manager::new(host);
        let service = manager.start(&program(host), &config, ROOM);
        manager.hear_of("READY=1");
        let mut first = peer();
        let (id, _) = first.listen("127.0.0.1:25").unwrap();
        first.listen("127.0.0.1:53/udp").unwrap();
        manager.hear_until("three listeners", |manager| manager.store.len() == 3);
        first.listen("127.0.0.1:26").unwrap();
        manager.hear_until("a fourth", |manager| manager.store.len() == 4);
        // What is stopped is stored no more.
        first.stop(&[id]);
        manager.hear_until("one less", |manager| manager.store.len() == 3);
        first.listen("127.0.0.1:25").unwrap();
        manager.hear_until("it again", |manager| manager.store.len() == 4);

        service.signal(Signal::KILL);
        drop(service);
        let waiting = TcpStream::connect("127.0.0.1:25").unwrap();
        manager.store.insert("other".to_owned(), std::net::TcpListener::bind("127.0.0.1:99").unwrap().into());
        let none = config.with_file_name("none.conf");
        std::fs::rename(broker::config(host, &permitting(r#"( "127.0.0.1:25" )"#)), &none).unwrap();
        let mut service = manager.start(&program(host), &none, ROOM);
        manager.hear_of("READY=1");
        service.log.wait_for(&["closed a descriptor", "no broker stored it"]);
        service.log.wait_for(&["closed a descriptor", "127.0.0.1:26 is no longer permitted"]);
        service.log.wait_for(&["closed a descriptor", "127.0.0.1:53/udp is no longer permitted"]);
        manager.hear_until("what is left", |manager| manager.store.len() == 2);
        let mut second = peer();
        let rows = second.status().listeners.into_vec();
        let shown: Vec<String> = rows.iter().map(|row| format!("{} {}", row.endpoint, row.owner)).collect();
        for row in ["127.0.0.1:25 user 0, gone", "127.0.0.1:2525 static ESMTP_Listener"] {
            assert!(shown.iter().any(|shown| shown == row), "{shown:?}");
        }
        let (_, socket) = second.listen("127.0.0.1:25").unwrap();
        let (_, from) = std::net::TcpListener::from(socket).accept().unwrap();
        assert_eq!(from, waiting.local_addr().unwrap());
        service.signal(Signal::TERM);
        assert!(service.ended().success());
    });
}

#[test]
fn a_store_that_is_full_is_told_of_once_and_fails_nothing() {
    isolated(|host| {
        let config = broker::config(host, &sample::control(r#"( "127.0.0.1:1-65535" )"#));
        let mut manager = Manager::new(host);
        let service = manager.start(&program(host), &config, 2);
        manager.hear_of("READY=1");
        let mut peer = peer();
        for port in 3001..3006 {
            peer.listen(&format!("127.0.0.1:{port}")).unwrap();
        }
        service.log.wait_for(&["descriptor store is full", "FileDescriptorStoreMax="]);
        manager.hear_until("two listeners", |manager| manager.store.len() == 2);
        peer.ping();
        let told = service.log.lines().iter().filter(|line| line.contains("store is full")).count();
        assert_eq!((told, manager.store.len(), census::listening().len()), (1, 2, 5));
    });
}

#[test]
fn the_end_is_told_before_anything_is_stopped() {
    isolated(|host| {
        let stage = Stage::new(host, "chroot");
        let rest = sample::socket(r#"( "127.0.0.1:25" )"#);
        let text = sample::worker(&stage.chroot, "( /run/host/bin/puppet )", &rest);
        let config = broker::config(host, &text);
        let mut manager = Manager::new(host);
        let mut service = manager.start(&program(host), &config, 0);
        manager.hear_of("READY=1");
        let (_puppet, mut worker) = stage.enter();
        worker.hello();
        worker.listen("127.0.0.1:25").unwrap();
        let child = |pid| eventually("a child", || process::children(pid).first().copied());
        let worker_pid = child(child(service.pid()));
        // A worker that is stopped does not end until it goes on.
        process::suspend(worker_pid);
        service.signal(Signal::TERM);
        manager.hear_of("STOPPING=1");
        assert!(process::runs(worker_pid));
        assert_eq!(census::listening().len(), 1);
        let _client = TcpStream::connect("127.0.0.1:25").unwrap();
        kill_process(Pid::from_raw(worker_pid.cast_signed()).unwrap(), Signal::CONT).unwrap();
        assert!(service.ended().success());
        eventually("the end of the listener", || census::listening().is_empty().then_some(()));
    });
}

#[test]
fn the_service_manager_is_told_which_broker_took_over_and_stores_for_it() {
    isolated(|host| {
        let config = broker::config(host, &sample::control(r#"( "127.0.0.1:1-65535" )"#));
        let mut manager = Manager::new(host);
        let mut first = manager.start(&program(host), &config, ROOM);
        manager.hear_of("READY=1");
        // Started by hand, it knows of no service manager but what the other broker hands over.
        let mut command = Command::new(program(host));
        let mut second = command.arg("--takeover").arg("--config").arg(&config).spawn().unwrap();
        manager.hear_until("the new main process", |manager| {
            manager.heard.iter().any(|heard| heard == "READY=1")
        });
        assert_eq!(manager.heard, [format!("MAINPID={}", second.id()), "READY=1".to_owned()]);
        assert!(first.ended().success());
        let mut peer = peer();
        peer.listen("127.0.0.1:25").unwrap();
        manager.hear_until("the listener", |manager| manager.store.len() == 1);
        second.kill().unwrap();
        second.wait().unwrap();
    });
}
