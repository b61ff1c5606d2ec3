//! Notifications to the service manager, as in sd_notify(3). The test plays the service manager.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use portreeve_protocol::reload::Reload;
use portreeve_tests::service_manager::ServiceManager;
use portreeve_tests::{Host, Peer, binaries, broker, eventually, isolated, process, sample};
use rustix::process::{Pid, Signal, kill_process};

/// The service manager's socket, and a command that starts a broker with it.
fn manager(host: &Host) -> (UnixDatagram, Command) {
    let address = host.path("manager.sock");
    let socket = UnixDatagram::bind(&address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let config = broker::config(host, "security { user = nobody group = nogroup }\n");
    let mut command = broker::command(host, &config);
    command.env("NOTIFY_SOCKET", &address).env("WATCHDOG_USEC", "500000");
    (socket, command)
}

fn receive(socket: &UnixDatagram) -> std::io::Result<String> {
    loop {
        let mut packet = [0; 512];
        let length = socket.recv(&mut packet)?;
        let text = String::from_utf8(packet[..length].to_vec()).unwrap();
        if !text.starts_with("STATUS=") {
            return Ok(text);
        }
    }
}

#[test]
fn a_broker_sends_watchdog_notifications_until_it_hangs() {
    isolated(|host| {
        let (socket, mut command) = manager(host);
        let child = command.spawn().unwrap();
        let began = Instant::now();
        let mut received = Vec::new();
        while received.iter().filter(|word| *word == "WATCHDOG=1").count() < 5 {
            received.push(receive(&socket).unwrap());
        }
        assert_eq!(received.iter().filter(|word| *word == "READY=1").count(), 1, "{received:?}");
        // The first is sent at once, the others a quarter of a second apart.
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());

        process::suspend(child.id());
        socket.set_nonblocking(true).unwrap();
        while receive(&socket).is_ok() {}
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        receive(&socket).unwrap_err();
        end(child);
    });
}

#[test]
fn a_reload_is_notified_before_and_after() {
    isolated(|host| {
        let (socket, mut command) = manager(host);
        let child = command.env_remove("WATCHDOG_USEC").spawn().unwrap();
        assert_eq!(receive(&socket).unwrap(), "READY=1");
        kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
        let word = receive(&socket).unwrap();
        let time = word.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{word}"));
        assert!(time.parse::<u64>().unwrap() > 0);
        assert_eq!(receive(&socket).unwrap(), "READY=1");
        end(child);
    });
}

#[test]
fn the_broker_ignores_the_watchdog_of_another_process() {
    isolated(|host| {
        let (socket, mut command) = manager(host);
        let child = command.env("WATCHDOG_PID", "1").spawn().unwrap();
        assert_eq!(receive(&socket).unwrap(), "READY=1");
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        receive(&socket).unwrap_err();
        end(child);
    });
}

/// Fills the queue of the service manager's socket, and returns how many messages fit.
fn fill(host: &Host) -> usize {
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(host.path("manager.sock")).unwrap();
    sender.set_nonblocking(true).unwrap();
    (0..).take_while(|_| sender.send(b"FILLER=1").is_ok()).count()
}

#[test]
fn a_service_manager_that_does_not_read_delays_no_peer_and_gets_its_messages_in_order() {
    isolated(|host| {
        let (socket, mut command) = manager(host);
        broker::config(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let fillers = fill(host);
        assert!(fillers > 0);
        let mut child = command.spawn().unwrap();
        let mut peer = eventually("a session", || Peer::connect(Path::new(broker::SOCKET)).ok());
        peer.hello();
        peer.listen("127.0.0.1:25").unwrap();
        for _ in 0..50 {
            peer.request(&Reload::default()).unwrap();
        }
        let signal = |signal| kill_process(Pid::from_child(&child), signal).unwrap();
        let mut received = Vec::new();
        let mut receive_until = |word: &str| {
            while received.iter().all(|other: &String| !other.starts_with(word)) {
                received.push(receive(&socket).unwrap());
            }
            received.drain(..).filter(|word| word != "FILLER=1").collect::<Vec<_>>()
        };
        // The last reload has ended before its reply, so everything waits in one queue.
        let mut heard = receive_until("RELOADING=1");
        assert_eq!(heard.remove(0), "READY=1");
        assert!(heard.iter().filter(|word| *word == "WATCHDOG=1").count() <= 1, "{heard:?}");
        // Watchdog notifications arrive again.
        assert_eq!(receive_until("READY=1").last().unwrap(), "READY=1");
        receive_until("WATCHDOG=1");
        receive_until("WATCHDOG=1");

        // The end waits for the service manager for a bounded time.
        peer.ping();
        fill(host);
        signal(Signal::TERM);
        let status = eventually("the end", || child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    });
}

#[test]
fn stopping_is_notified_when_the_service_manager_reads_again() {
    isolated(|host| {
        let (socket, mut command) = manager(host);
        let mut child = command.env_remove("WATCHDOG_USEC").spawn().unwrap();
        assert_eq!(receive(&socket).unwrap(), "READY=1");
        let fillers = fill(host);
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        for _ in 0..fillers {
            assert_eq!(receive(&socket).unwrap(), "FILLER=1");
        }
        assert_eq!(receive(&socket).unwrap(), "STOPPING=1");
        child.wait().unwrap();
    });
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_state_is_shown_at_the_start_after_a_change_and_at_the_end() {
    isolated(|host| {
        let mut manager = ServiceManager::new(host);
        let text = format!(
            "{} worker {{ command = ( /bin/sleep 1000 ) }}",
            sample::control(r#"( "127.0.0.1:25" )"#)
        );
        let config = broker::config(host, &text);
        let mut service = manager.start(&host.binary(binaries::BROKER), &config, 0);
        let mut await_state = |words: &str| {
            manager.receive_until(words, |manager| manager.states.iter().any(|state| state.contains(words)));
            manager.states.clear();
        };
        await_state("STATUS=serving 0 listeners, 0 addresses; worker");
        let mut peer = Peer::connect(Path::new(broker::SOCKET)).unwrap();
        peer.hello();
        peer.listen("127.0.0.1:25").unwrap();
        await_state("serving 1 listener, 0 addresses; worker");
        let launcher = process::children(service.pid())[0];
        let worker = eventually("a worker", || process::children(launcher).first().copied());
        kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), Signal::KILL).unwrap();
        await_state("runs, restarts: 1");
        service.signal(Signal::TERM);
        await_state("STATUS=stopping");
        assert!(service.wait_for_exit().success());
    });
}
