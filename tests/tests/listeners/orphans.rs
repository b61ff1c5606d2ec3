//! Workers and their descendants whose broker or launcher has ended: none keeps a port, and the next broker starts.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_tests::chroot::WORKER;
use portreeve_tests::kernel::landlock_abi;
use portreeve_tests::process::kill;
use portreeve_tests::scripted_worker::{ScriptedWorker, WorkerSetup};
use portreeve_tests::service_manager::ServiceManager;
use portreeve_tests::{
    Broker, Host, Peer, binaries, broker, eventually, isolated, process, resources, sample,
};
use rustix::process::Signal;

const STATIC: &str = r#"ESMTP_Listener { Listen "127.0.0.1:25" {} }"#;

/// A broker with a static listener and a scripted worker. `worker` is added to the worker scope.
fn text(setup: &WorkerSetup, worker: &str) -> String {
    let rest = format!("{STATIC} worker {{ stable_after = 0 {worker} }}");
    sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest)
}

fn start(host: &Host, worker: &str) -> (WorkerSetup, Broker) {
    let setup = WorkerSetup::new(host, "chroot");
    let broker = Broker::start(host, &text(&setup, worker));
    (setup, broker)
}

/// A descendant of the worker that holds the port and is in a session of its own; its parent has ended.
fn daemonize(worker: &mut ScriptedWorker) -> u32 {
    let pid = worker.run("daemonize").parse().unwrap();
    assert!(process::is_running(pid));
    pid
}

#[track_caller]
fn await_end(pids: &[u32]) {
    eventually("the end of the processes", || {
        pids.iter().all(|pid| !process::is_running(*pid)).then_some(())
    });
}

fn launchers(broker: &Broker) -> Vec<String> {
    broker.log.lines().into_iter().filter(|line| line.contains("waiting for")).collect()
}

#[test]
fn a_killed_broker_that_is_started_again_at_once_serves_and_nothing_of_the_former_worker_is_left() {
    isolated(|host| {
        let (setup, mut broker) = start(host, "");
        for _ in 0..5 {
            let (mut scripted, mut channel) = setup.accept();
            channel.hello();
            let daemon = daemonize(&mut scripted);
            let rest = [broker.launcher(), broker.worker(), daemon];
            broker.signal(Signal::KILL);
            let next = Broker::start(host, &text(&setup, ""));
            await_end(&rest);
            // The former broker is forgotten only now, because that would end its processes.
            broker.wait_for_exit();
            broker = next;
        }
        let _ = setup.accept();
        assert_eq!(resources::tcp_listeners().len(), 1);
        broker.terminate();
        assert_eq!(resources::tcp_listeners(), []);
    });
}

#[test]
fn the_next_broker_waits_for_a_worker_that_ignores_sigterm_and_then_starts() {
    isolated(|host| {
        let (setup, mut broker) = start(host, "stop_timeout = 1");
        let (mut scripted, _channel) = setup.accept();
        assert_eq!(scripted.run("ignore SIGTERM"), "done");
        let (launcher, worker) = (broker.launcher(), broker.worker());
        let started = Instant::now();
        broker.signal(Signal::KILL);
        let next = Broker::start(host, &text(&setup, "stop_timeout = 1"));
        println!("the next broker was ready after {:?}", started.elapsed());
        assert!(started.elapsed() >= Duration::from_secs(1));
        assert!(!process::is_running(worker));
        next.log.wait_for(&["waiting for an endpoint", "127.0.0.1:25", &launcher.to_string()]);
        broker.wait_for_exit();
    });
}

#[test]
fn an_endpoint_that_a_former_worker_does_not_release_in_time_is_named_with_its_launcher() {
    isolated(|host| {
        let (setup, mut broker) = start(host, "orphan_timeout = 3600");
        let (_scripted, _channel) = setup.accept();
        let (launcher, worker) = (broker.launcher(), broker.worker());
        broker.signal(Signal::KILL);
        broker.wait_for_exit();
        let refusal = portreeve_tests::StartupFailure::of(host, &text(&setup, "stop_timeout = 0"));
        assert_eq!(refusal.code, Some(69), "{}", refusal.message);
        for words in ["127.0.0.1:25", "in use", "still runs", &format!("launcher is process {launcher})")] {
            assert!(refusal.message.contains(words), "{words}: {}", refusal.message);
        }
        assert!(process::is_running(worker));
    });
}

#[test]
fn after_orphan_timeout_the_worker_of_a_killed_broker_ends() {
    isolated(|host| {
        let (setup, mut broker) = start(host, "orphan_timeout = 2");
        let (mut scripted, _channel) = setup.accept();
        let daemon = daemonize(&mut scripted);
        let rest = [broker.launcher(), broker.worker(), daemon];
        let started = Instant::now();
        broker.signal(Signal::KILL);
        broker.wait_for_exit();
        assert_eq!(scripted.run("descriptors"), "0 1 2 3:socket 4:channel");
        await_end(&rest);
        println!("they ended after {:?}", started.elapsed());
        assert!(started.elapsed() >= Duration::from_secs(2));
        assert_eq!(resources::tcp_listeners(), []);
    });
}

#[test]
fn a_worker_cannot_signal_its_launcher_where_landlock_can_deny_it() {
    /// The first version of Landlock with a signal scope.
    const SIGNAL_SCOPE: u32 = 6;
    isolated(|host| {
        let (setup, broker) = start(host, "");
        let (mut scripted, mut channel) = setup.accept();
        let is_denied = scripted.run("signal the launcher") == format!("-1 Some({})", libc::EPERM);
        assert_eq!(is_denied, landlock_abi() >= SIGNAL_SCOPE);
        channel.hello();
        let rows = channel.status().processes.into_vec();
        let ids = |role: &str| rows.iter().find(|row| &*row.role == role).unwrap().credentials.uid;
        assert_eq!(ids("launcher"), [WORKER; 4]);
        assert_eq!(ids("worker"), [WORKER; 4]);
        assert!(process::is_running(broker.launcher()));
    });
}

#[test]
fn a_worker_ends_with_its_launcher_and_the_broker_names_what_outlives_both() {
    isolated(|host| {
        let (setup, mut broker) = start(host, "");
        let (mut scripted, _channel) = setup.accept();
        let daemon = daemonize(&mut scripted);
        let worker = broker.worker();
        kill(broker.launcher());
        let status = broker.wait_for_exit();
        assert_eq!(status.code(), Some(69));
        assert!(!process::is_running(worker));
        broker.log.wait_for(&["processes of the worker outlive", &format!("pids=[{daemon}]")]);
        kill(daemon);
    });
}

#[test]
fn a_worker_that_stays_without_its_launcher_is_named() {
    isolated(|host| {
        let (setup, mut broker) = start(host, "");
        let (mut scripted, _channel) = setup.accept();
        assert_eq!(scripted.run("stay if the launcher ends"), "done");
        let worker = broker.worker();
        kill(broker.launcher());
        broker.wait_for_exit();
        broker.log.wait_for(&["processes of the worker outlive", &format!("pids=[{worker}]")]);
        kill(worker);
    });
}

#[test]
fn descendants_of_a_worker_survive_it_named_in_status_and_end_with_the_broker() {
    isolated(|host| {
        let (setup, mut broker) = start(host, "");
        let (mut scripted, _channel) = setup.accept();
        let daemon = daemonize(&mut scripted);
        kill(broker.worker());
        let (_scripted, mut channel) = setup.accept();
        channel.hello();
        let named =
            format!("processes that an earlier worker left still run and may hold its listeners: {daemon}");
        broker.log.wait_for(&[&named, "end_descendants"]);
        assert!(channel.status().warnings.iter().any(|warning| **warning == *named));
        assert!(process::is_running(daemon));
        let status = broker.terminate();
        assert!(status.success(), "{status}");
        assert!(!process::is_running(daemon));
        assert_eq!(resources::tcp_listeners(), []);
    });
}

#[test]
fn descendants_that_end_by_themselves_leave_no_warning() {
    isolated(|host| {
        let (setup, broker) = start(host, "");
        let (mut scripted, _channel) = setup.accept();
        let daemon = daemonize(&mut scripted);
        kill(broker.worker());
        let (_scripted, mut channel) = setup.accept();
        channel.hello();
        broker.log.wait_for(&["an earlier worker left still run"]);
        kill(daemon);
        broker.log.wait_for(&["no process that an earlier worker left runs any more"]);
        assert!(!channel.status().warnings.iter().any(|warning| warning.contains("earlier worker")));
        assert_eq!(process::descendants(broker.launcher()), [broker.worker()]);
    });
}

#[test]
fn with_end_descendants_the_next_worker_starts_after_the_descendants_of_the_last_one_have_ended() {
    isolated(|host| {
        let (setup, broker) = start(host, "end_descendants = true");
        let (mut scripted, _channel) = setup.accept();
        let daemon = daemonize(&mut scripted);
        kill(broker.worker());
        let (_scripted, mut channel) = setup.accept();
        channel.hello();
        assert!(!process::is_running(daemon));
        assert!(!channel.status().warnings.iter().any(|warning| warning.contains("earlier worker")));
    });
}

#[test]
fn a_takeover_leaves_no_descendant_of_the_predecessors_worker() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let text = text(&setup, "") + &sample::socket(r#"( "127.0.0.1:26" )"#);
        let mut broker = Broker::start(host, &text);
        let (mut scripted, _channel) = setup.accept();
        let daemon = daemonize(&mut scripted);
        let client = TcpStream::connect("127.0.0.1:25").unwrap();
        let next = broker.start_successor(host, &text);
        assert!(broker.wait_for_exit().success());
        assert!(!process::is_running(daemon));
        let (_scripted, mut channel) = setup.accept();
        channel.hello();
        assert_eq!(resources::tcp_listeners().len(), 1);
        assert_eq!(launchers(&next), Vec::<String>::new());
        drop(client);
    });
}

#[test]
fn a_broker_adopts_from_the_store_after_the_former_worker_has_ended_and_no_client_is_refused() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let config = broker::config(host, &text(&setup, "stop_timeout = 1"));
        let mut manager = ServiceManager::new(host);
        let program = host.binary(binaries::BROKER);
        let mut first = manager.start(&program, &config, 8);
        manager.await_notification("READY=1");
        manager.receive_until("the listener", |manager| manager.fdstore.len() == 1);
        let (mut scripted, _channel) = setup.accept();
        assert_eq!(scripted.run("ignore SIGTERM"), "done");
        let launcher = process::children(first.pid())[0];
        let worker = process::children(launcher)[0];
        first.signal(Signal::KILL);
        first.wait_for_exit();
        let clients: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect("127.0.0.1:25").unwrap()).collect();
        let second = manager.start(&program, &config, 8);
        second.log.wait_for(&["waiting for the worker of a broker that has ended", &launcher.to_string()]);
        manager.await_notification("READY=1");
        assert!(!process::is_running(worker));
        let (_scripted, mut channel) = setup.accept();
        channel.hello();
        let status = channel.status();
        assert!(status.listeners.iter().any(|listener| listener.endpoint.to_string() == "127.0.0.1:25"));
        // The clients wait in the queue of the same socket.
        let listener = TcpListener::from(manager.fdstore.values().next().unwrap().try_clone().unwrap());
        for mut client in clients {
            listener.accept().unwrap().0.write_all(b"220").unwrap();
            client.read_exact(&mut [0; 3]).unwrap();
        }
    });
}

/// The children of a process that have ended and are not reaped.
fn zombies(parent: u32) -> usize {
    let of = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pids = std::fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_zombie = |pid: &u32| {
        let status = of(*pid);
        status.contains(&format!("\nPPid:\t{parent}\n")) && status.contains("\nState:\tZ")
    };
    pids.filter(is_zombie).count()
}

#[test]
fn a_broker_that_is_process_1_reaps_orphans() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let config = broker::config(host, &(text(&setup, "") + &sample::socket(r#"( "127.0.0.1:26" )"#)));
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.arg(host.binary(binaries::BROKER)).arg("--config").arg(&config);
        let container = Broker::start_command(host, command);
        let (mut scripted, _channel) = setup.accept();
        let broker = process::children(container.pid())[0];
        let namespace = std::fs::read_to_string(format!("/proc/{broker}/status")).unwrap();
        assert!(namespace.contains(&format!("\nNSpid:\t{broker}\t1\n")), "{namespace}");
        let children = process::children(broker);
        for _ in 0..3 {
            // The shell ends first, so that the process becomes a child of process 1.
            let mut orphan = Command::new("nsenter");
            orphan.args(["--pid", "--target", &broker.to_string(), "sh", "-c", "sleep 0.2 &"]);
            assert!(orphan.status().unwrap().success());
            eventually("an orphan", || (process::children(broker).len() > children.len()).then_some(()));
            eventually("its end", || (process::children(broker).len() == children.len()).then_some(()));
        }
        eventually("no zombie", || (zombies(broker) == 0).then_some(()));
        // Those of the worker are children of the launcher.
        scripted.run("daemonize");
        let launcher = children[0];
        let worker = process::children(launcher)[0];
        let daemon = process::children(launcher)[1];
        kill(daemon);
        eventually("no zombie", || (zombies(launcher) == 0).then_some(()));
        assert!(process::is_running(worker));
        // The end of the reader is still reported with its cause.
        kill(*children.last().unwrap());
        container.log.wait_for(&["reader", "SIGKILL"]);
        let mut peer = Peer::connect(std::path::Path::new(broker::SOCKET)).unwrap();
        peer.hello();
        eventually("no zombie", || (zombies(broker) == 0).then_some(()));
    });
}
