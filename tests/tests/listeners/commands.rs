//! `portreeve listen` with a command: the command gets the listeners, the signals of `portreeve`, and ends with it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};

use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, Host, binaries, eventually, isolated, process, resources, sample};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// `portreeve listen 127.0.0.1:25` with a command, and the lines that the command prints.
struct Running {
    portreeve: Child,
    lines: BufReader<ChildStdout>,
    /// The process of the command.
    command: u32,
}

impl Running {
    /// Runs a shell script, which prints `ready` when it is.
    fn start(host: &Host, options: &[&str], script: &str) -> Self {
        // Whoever starts the test may ignore signals, as nohup(1) does, which the command would inherit and could not trap.
        let mut command = Command::new("env");
        command.arg("--default-signal").arg(host.binary(binaries::CLIENT));
        command.args(["--socket", SOCKET, "listen", "127.0.0.1:25"]).args(options);
        command.args(["--", "sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        // As if a service manager had started portreeve by socket activation.
        command.envs([
            ("LISTEN_PID", "1"),
            ("LISTEN_PIDFDID", "1"),
            ("LISTEN_FDS", "4"),
            ("LISTEN_FDNAMES", "a:b"),
        ]);
        let mut portreeve = command.spawn().unwrap();
        let lines = BufReader::new(portreeve.stdout.take().unwrap());
        let mut running = Self { portreeve, lines, command: 0 };
        let (ready, pid) = (running.line(), running.line());
        assert_eq!(ready, "ready");
        running.command = pid.parse().unwrap();
        running
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, number: i32) {
        let pid = self.portreeve.id().to_string();
        assert!(Command::new("kill").args([&format!("-{number}"), &pid]).status().unwrap().success());
    }
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).unwrap()
}

fn await_end(process: u32) {
    eventually("the end of the command", || (!process::is_running(process)).then_some(()));
}

/// Prints the number of each signal that it gets, and waits for the next.
const PRINT_SIGNALS: &str = "for n in 1 2 3 10 12 15 20 23 28 37 64; do trap \"echo $n\" $n; done; \
    echo ready; echo $$; while :; do sleep 1000 & wait; done";

#[test]
fn a_command_gets_every_signal_of_portreeve_once() {
    isolated(|host| {
        let _broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let mut running = Running::start(host, &[], PRINT_SIGNALS);
        for number in [10, 12, 3, 28, 1, 2, 23, 37, 64, 15] {
            running.signal(number);
            assert_eq!(running.line(), number.to_string());
        }
        assert!(TcpStream::connect("127.0.0.1:25").is_ok());
        // SIGTSTP stops portreeve as well, until it is continued.
        running.signal(20);
        assert_eq!(running.line(), "20");
        let state = || process::status_field(running.portreeve.id(), "State");
        eventually("the stop", || state().starts_with('T').then_some(()));
        running.signal(18);
        running.signal(10);
        assert_eq!(running.line(), "10");
        kill_process(pid(running.command), Signal::KILL).unwrap();
        assert_eq!(running.portreeve.wait().unwrap().code(), Some(128 + 9));
    });
}

#[test]
fn a_signal_that_the_command_does_not_handle_ends_both_and_leaves_no_listener() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let before = broker.descriptors();
        for number in [10, 3, 37] {
            let mut running = Running::start(host, &[], "echo ready; echo $$; exec sleep 1000");
            running.signal(number);
            let status = running.portreeve.wait().unwrap();
            assert_eq!((status.code(), status.signal()), (Some(128 + number), None));
            assert!(!process::is_running(running.command));
            broker.await_no_leak(&before);
            assert!(resources::tcp_listeners().is_empty());
        }
    });
}

#[test]
fn a_command_ends_with_portreeve_even_if_that_is_killed() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let before = broker.descriptors();
        let mut running = Running::start(host, &[], "echo ready; echo $$; exec sleep 1000");
        running.portreeve.kill().unwrap();
        running.portreeve.wait().unwrap();
        await_end(running.command);
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_command_is_named_by_its_number_and_by_the_inode_of_its_pidfd() {
    isolated(|host| {
        let _broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let script = "echo ready; echo $$; echo $LISTEN_PID $LISTEN_FDS $LISTEN_FDNAMES ${LISTEN_PIDFDID-none}; exec sleep 1000";
        let mut running = Running::start(host, &[], script);
        let pidfd = pidfd_open(pid(running.command), PidfdFlags::empty()).unwrap();
        let inode = rustix::fs::fstat(&pidfd).unwrap().st_ino;
        // Linux before 6.9 has one inode for the pidfds of all processes.
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        let is_unique = rustix::fs::fstat(&own).unwrap().st_ino != inode;
        let id = if is_unique { inode.to_string() } else { "none".to_owned() };
        assert_eq!(running.line(), format!("{} 1 127.0.0.1_25 {id}", running.command));
        running.signal(15);
        assert_eq!(running.portreeve.wait().unwrap().code(), Some(128 + 15));
    });
}

#[test]
fn the_listener_is_the_standard_input_of_a_command_that_waits_as_from_inetd() {
    isolated(|host| {
        let _broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let script = "echo ready; echo $$; env | grep -c LISTEN_; exec python3 -c '
import socket
listener = socket.socket(fileno=0)
print(listener.getsockname(), listener.getblocking(), flush=True)
listener.accept()[0].sendall(b\"220 mail\")'";
        let mut running = Running::start(host, &["--stdin"], script);
        assert_eq!(running.line(), "0");
        assert_eq!(running.line(), "('127.0.0.1', 25) True");
        let mut greeting = String::new();
        TcpStream::connect("127.0.0.1:25").unwrap().read_to_string(&mut greeting).unwrap();
        assert_eq!(greeting, "220 mail");
        assert_eq!(running.portreeve.wait().unwrap().code(), Some(0));
        for wrong in
            [&["listen", "--stdin", "*:25"][..], &["listen", "--stdin", "*:25", "*:26", "--", "true"]]
        {
            let output =
                Command::new(host.binary(binaries::CLIENT)).args(["--socket", SOCKET]).args(wrong).output();
            assert_eq!(output.unwrap().status.code(), Some(64), "{wrong:?}");
        }
    });
}

#[test]
fn the_worker_is_named_by_the_inode_of_its_pidfd_and_not_by_its_configured_environment() {
    isolated(|host| {
        let config = r#"
            security { user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }
            worker {
              command = ( /bin/sh "-c" "echo started-as $LISTEN_PID $LISTEN_FDS $LISTEN_PIDFDID; exec sleep 1000" )
              environment = [ LISTEN_PIDFDID = 1 LISTEN_PID = 1 LISTEN_FDS = 7 PATH = "/bin:/usr/bin" ]
            }
            ESMTP_Listener { Listen "127.0.0.1:25" {} }"#;
        let broker = Broker::start(host, config);
        let line = broker.log.wait_for(&["started-as "]);
        let worker = broker.worker();
        let pidfd = pidfd_open(pid(worker), PidfdFlags::empty()).unwrap();
        let inode = rustix::fs::fstat(&pidfd).unwrap().st_ino;
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        let is_unique = rustix::fs::fstat(&own).unwrap().st_ino != inode;
        let id = if is_unique { format!(" {inode}") } else { String::new() };
        assert!(line.contains(&format!("started-as {worker} 1{id}")), "{line} {inode}");
    });
}
