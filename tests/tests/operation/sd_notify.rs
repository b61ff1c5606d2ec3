//! Notifications to the service manager, as in sd_notify(3). The test plays the service manager.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use portreeve_tests::{Host, broker, isolated, process};
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
    let mut packet = [0; 512];
    let length = socket.recv(&mut packet)?;
    Ok(String::from_utf8(packet[..length].to_vec()).unwrap())
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

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}
