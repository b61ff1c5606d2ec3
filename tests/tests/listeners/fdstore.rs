//! Listeners in the service manager's file-descriptor store (fdstore): they survive a restart or a crash of the broker,
//! and no client is refused.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::Instant;

use portreeve_tests::broker::{self, SOCKET};
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::service_manager::ServiceManager;
use portreeve_tests::smtp_load::{self, BATCH, SmtpLoad};
use portreeve_tests::{Host, Peer, binaries, eventually, isolated, process, resources, sample};
use rustix::process::{Pid, Signal, kill_process};

/// Room for all listeners.
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
fn with_fdstore_restarts_and_crashes_refuse_no_client() {
    const RESTARTS: usize = 6;
    isolated(|host| {
        let config = broker::config(host, &smtp_load::mail_server(host));
        let mut manager = ServiceManager::new(host);
        let mut service = manager.start(&program(host), &config, ROOM);
        manager.await_notification("READY=1");
        manager.receive_until("the listener", |manager| manager.fdstore.len() == 1);
        let load = SmtpLoad::default();
        let started = Instant::now();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| load.run_client())).collect();
            for restart in 0..RESTARTS {
                let greeted = load.greeted();
                eventually("clients that are greeted", || {
                    let failed = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                    (failed || load.greeted() > greeted + 100).then_some(())
                });
                let launcher = process::children(service.pid())[0];
                let worker = eventually("a worker", || process::children(launcher).first().copied());
                match restart % 3 {
                    0 => {
                        service.signal(Signal::TERM);
                        manager.await_notification("STOPPING=1");
                        assert!(service.wait_for_exit().success());
                    }
                    1 => service.signal(Signal::KILL),
                    // The broker then ends by itself, with an error, and the kernel kills the worker.
                    _ => {
                        kill(launcher);
                        assert!(!service.wait_for_exit().success());
                        assert!(!process::is_running(worker));
                    }
                }
                service.kill_all();
                service = manager.start(&program(host), &config, ROOM);
                manager.await_notification("READY=1");
            }
            load.stop();
        });
        let (greeted, cut_off) = (load.greeted(), load.disconnected());
        let rate = greeted as f64 / started.elapsed().as_secs_f64();
        println!(
            "{RESTARTS} restarts: {greeted} clients greeted ({rate:.0} a second), {cut_off} cut off, 0 refused"
        );
        assert!(cut_off <= RESTARTS * 2 * BATCH, "{cut_off} clients were cut off");
        let mut peer = peer();
        let adopted = eventually("the adoption", || {
            let listeners = peer.status().listeners;
            (!listeners.iter().any(|listener| listener.retained)).then_some(listeners.len())
        });
        assert_eq!((adopted, manager.fdstore.len(), resources::tcp_listeners().len()), (1, 1, 1));
        service.signal(Signal::TERM);
        assert!(service.wait_for_exit().success());
        // A listener that the service manager drops is closed.
        manager.fdstore.clear();
        eventually("the end of the listener", || resources::tcp_listeners().is_empty().then_some(()));
    });
}

#[test]
fn stored_listeners_are_restored_and_foreign_or_no_longer_permitted_sockets_are_closed() {
    isolated(|host| {
        let statics = r#"ESMTP_Listener { Listen "127.0.0.1:2525" {} Listen "/run/host/static.sock" {} }"#;
        let permitting = |listen: &str| sample::control(listen) + statics;
        let text = permitting(r#"( "127.0.0.1:1-65535" "127.0.0.1:53/udp" )"#);
        let config = broker::config(host, &text);
        let mut manager = ServiceManager::new(host);
        let service = manager.start(&program(host), &config, ROOM);
        manager.await_notification("READY=1");
        let mut first = peer();
        let (id, _) = first.listen("127.0.0.1:25").unwrap();
        first.listen("127.0.0.1:53/udp").unwrap();
        manager.receive_until("four listeners", |manager| manager.fdstore.len() == 4);
        first.listen("127.0.0.1:26").unwrap();
        manager.receive_until("five listeners", |manager| manager.fdstore.len() == 5);
        // A stopped listener is removed from the store.
        first.stop(&[id]);
        manager.receive_until("one listener less", |manager| manager.fdstore.len() == 4);
        first.listen("127.0.0.1:25").unwrap();
        manager.receive_until("the listener again", |manager| manager.fdstore.len() == 5);

        service.signal(Signal::KILL);
        drop(service);
        let waiting = TcpStream::connect("127.0.0.1:25").unwrap();
        manager
            .fdstore
            .insert("other".to_owned(), std::net::TcpListener::bind("127.0.0.1:99").unwrap().into());
        let none = config.with_file_name("none.conf");
        std::fs::rename(broker::config(host, &permitting(r#"( "127.0.0.1:25" )"#)), &none).unwrap();
        let mut service = manager.start(&program(host), &none, ROOM);
        manager.await_notification("READY=1");
        service.log.wait_for(&["closed a descriptor", "no broker stored it"]);
        service.log.wait_for(&["closed a descriptor", "127.0.0.1:26 is no longer permitted"]);
        service.log.wait_for(&["closed a descriptor", "127.0.0.1:53/udp is no longer permitted"]);
        manager.receive_until("the three remaining listeners", |manager| manager.fdstore.len() == 3);
        let mut second = peer();
        let rows = second.status().listeners.into_vec();
        let shown: Vec<String> = rows.iter().map(|row| format!("{} {}", row.endpoint, row.owner)).collect();
        for row in ["127.0.0.1:25 user 0, disconnected", "127.0.0.1:2525 static ESMTP_Listener"] {
            assert!(shown.iter().any(|shown| shown == row), "{shown:?}");
        }
        let (_, socket) = second.listen("127.0.0.1:25").unwrap();
        let (_, from) = std::net::TcpListener::from(socket).accept().unwrap();
        assert_eq!(from, waiting.local_addr().unwrap());
        service.signal(Signal::TERM);
        assert!(service.wait_for_exit().success());
    });
}

#[test]
fn unix_listeners_survive_a_restart_with_the_clients_in_their_queues() {
    const REQUESTED: &str = "/run/host/requested.sock";
    const REPLACED: &str = "/run/host/replaced.sock";
    isolated(|host| {
        let config = broker::config(host, &sample::control(r#"( "/run/host/*" )"#));
        let mut manager = ServiceManager::new(host);
        let mut service = manager.start(&program(host), &config, ROOM);
        manager.await_notification("READY=1");
        let mut first = peer();
        let (_, requested) = first.listen(REQUESTED).unwrap();
        let (_, replaced) = first.listen(REPLACED).unwrap();
        let (_, colon) = first.listen("/run/host/a:b.sock").unwrap();
        for socket in [&requested, &replaced, &colon] {
            rustix::net::listen(socket, 16).unwrap();
        }
        manager.receive_until("two listeners", |manager| manager.fdstore.len() == 2);
        let inode = |path| std::fs::metadata(path).unwrap().ino();
        let before = inode(REQUESTED);
        let mut holder = first;
        for signal in [Signal::TERM, Signal::KILL] {
            let mut waiting = UnixStream::connect(REQUESTED).unwrap();
            service.signal(signal);
            service.wait_for_exit();
            service = manager.start(&program(host), &config, ROOM);
            manager.await_notification("READY=1");
            holder = peer();
            let (_, socket) = holder.listen(REQUESTED).unwrap();
            let (mut accepted, _) = UnixListener::from(socket).accept().unwrap();
            accepted.write_all(b"220").unwrap();
            let mut greeting = [0; 3];
            waiting.read_exact(&mut greeting).unwrap();
            assert_eq!((&greeting, inode(REQUESTED)), (b"220", before), "{signal:?}");
        }
        drop((requested, replaced, colon));
        // A file that somebody has put in the place of the socket is no listener of the broker.
        service.signal(Signal::TERM);
        service.wait_for_exit();
        drop(holder);
        std::fs::remove_file(REPLACED).unwrap();
        std::fs::write(REPLACED, "").unwrap();
        let service = manager.start(&program(host), &config, ROOM);
        manager.await_notification("READY=1");
        service.log.wait_for(&["closed a descriptor", "replaced.sock has been removed or replaced"]);
        manager.receive_until("one listener", |manager| manager.fdstore.len() == 1);
        let mut last = peer();
        let (id, _) = last.listen(REQUESTED).unwrap();
        last.stop(&[id]);
        manager.receive_until("no listener", |manager| manager.fdstore.is_empty());
        assert!(!std::fs::exists(REQUESTED).unwrap());
        assert_eq!(std::fs::read(REPLACED).unwrap(), b"");
    });
}

/// The endpoints of the stored listeners that a new broker adopts, by their owner.
fn stored_by(manager: &ServiceManager, ports: std::ops::Range<u16>) -> usize {
    let port_of = |socket: &std::os::fd::OwnedFd| {
        let socket = std::net::TcpListener::from(socket.try_clone().unwrap());
        socket.local_addr().unwrap().port()
    };
    manager.fdstore.values().filter(|socket| ports.contains(&port_of(socket))).count()
}

#[test]
fn one_user_does_not_fill_the_fdstore_and_static_listeners_come_first() {
    isolated(|host| {
        let statics = |count: u16| -> String {
            (0..count).map(|n| format!("Listen \"127.0.0.1:{}\" {{}} ", 5000 + n)).collect()
        };
        let text = |count: u16| {
            sample::control(r#"( "127.0.0.1:1-65535" )"#)
                + "broker { peer 8 { allow = ( status listen ) permit = ( any ) } }"
                + &format!("ESMTP_Listener {{ {} }}", statics(count))
        };
        let config = broker::config(host, &text(1));
        let mut manager = ServiceManager::new(host);
        // 4 entries of the broker's own, 3 in reserve, one of them for the static listener: 9 for users.
        let service = manager.start(&program(host), &config, 16);
        manager.await_notification("READY=1");
        manager.receive_until("the static listener", |manager| manager.fdstore.len() == 1);
        let user = |uid| Peer::of_user(uid, uid);
        let (mut greedy, mut modest) = (user(8), user(65534));
        let mut first: Vec<_> =
            (3000..3020).map(|port| greedy.listen(&format!("127.0.0.1:{port}")).unwrap().0).collect();
        let told = service.log.wait_for(&["descriptor store is full", "user 8", "FileDescriptorStoreMax="]);
        assert!(told.contains("WARN"), "{told}");
        modest.listen("127.0.0.1:4000").unwrap();
        modest.listen("127.0.0.1:4001").unwrap();
        manager
            .receive_until("two listeners of the other user", |manager| stored_by(manager, 4000..5000) == 2);
        assert_eq!(stored_by(&manager, 3000..4000), 5);
        let warnings = format!("{:?}", modest.status().warnings);
        assert!(
            warnings.contains("no room for 15 listeners") && warnings.contains("15 of user 8"),
            "{warnings}"
        );
        // A listener that did not fit is stored once there is room.
        let last = first.split_off(15);
        assert!(greedy.stop(&first).unknown.is_empty());
        manager.receive_until("the last listeners", |manager| stored_by(manager, 3015..3020) == 4);
        assert_eq!(stored_by(&manager, 3000..3015), 0);
        assert!(format!("{:?}", modest.status().warnings).contains("no room for 1 listeners"));
        assert!(greedy.stop(&last[4..]).unknown.is_empty());
        eventually("no warning", || {
            (!format!("{:?}", modest.status().warnings).contains("no room")).then_some(())
        });
        // Static listeners of a reload have the free entries, and displace those of whoever has most.
        broker::config(host, &text(8));
        service.signal(Signal::HUP);
        manager.receive_until("the static listeners", |manager| stored_by(manager, 5000..6000) == 8);
        assert_eq!((stored_by(&manager, 3000..4000), stored_by(&manager, 4000..5000)), (2, 2));
        let lines = service.log.lines();
        assert_eq!(lines.iter().filter(|line| line.contains("store is full")).count(), 1, "{lines:?}");
    });
}

#[test]
fn stopping_is_notified_before_anything_stops() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let rest = sample::socket(r#"( "127.0.0.1:25" )"#);
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest);
        let config = broker::config(host, &text);
        let mut manager = ServiceManager::new(host);
        let mut service = manager.start(&program(host), &config, 0);
        manager.await_notification("READY=1");
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        worker.listen("127.0.0.1:25").unwrap();
        let child = |pid| eventually("a child", || process::children(pid).first().copied());
        let worker_pid = child(child(service.pid()));
        // A suspended worker does not end until it continues.
        process::suspend(worker_pid);
        service.signal(Signal::TERM);
        manager.await_notification("STOPPING=1");
        assert!(process::is_running(worker_pid));
        assert_eq!(resources::tcp_listeners().len(), 1);
        let _client = TcpStream::connect("127.0.0.1:25").unwrap();
        kill_process(Pid::from_raw(worker_pid.cast_signed()).unwrap(), Signal::CONT).unwrap();
        assert!(service.wait_for_exit().success());
        eventually("the end of the listener", || resources::tcp_listeners().is_empty().then_some(()));
    });
}

#[test]
fn the_service_manager_learns_the_new_main_process_and_stores_its_listeners() {
    isolated(|host| {
        let config = broker::config(host, &sample::control(r#"( "127.0.0.1:1-65535" )"#));
        let mut manager = ServiceManager::new(host);
        let mut first = manager.start(&program(host), &config, ROOM);
        manager.await_notification("READY=1");
        // Started by hand, the new broker knows the service manager only through the exported state.
        let mut command = Command::new(program(host));
        let mut second = command.arg("--takeover").arg("--config").arg(&config).spawn().unwrap();
        manager.receive_until("the new main process", |manager| {
            manager.notifications.iter().any(|heard| heard == "READY=1")
        });
        assert_eq!(manager.notifications, [format!("MAINPID={}", second.id()), "READY=1".to_owned()]);
        assert!(first.wait_for_exit().success());
        let mut peer = peer();
        peer.listen("127.0.0.1:25").unwrap();
        manager.receive_until("the listener", |manager| manager.fdstore.len() == 1);
        second.kill().unwrap();
        second.wait().unwrap();
    });
}
