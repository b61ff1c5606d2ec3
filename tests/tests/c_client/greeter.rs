//! The sample mail server in C, as the broker's worker and as a peer of the control socket.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use portreeve_tests::broker::{self, SOCKET};
use portreeve_tests::chroot::{Chroot, WORKER};
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, eventually, isolated, process, resources, sample};
use rustix::process::{Pid, Signal, kill_process};

use crate::compiler::{SMTP_GREETER, compile_example};

/// A running example, killed with the test.
pub struct Example {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Example {
    /// Starts it as a user without privileges.
    pub fn start(command: &mut Command, user: u32) -> Self {
        let command = command.uid(user).gid(user).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The next line of its standard output.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM, and returns the lines that it still prints.
    pub fn terminate(&mut self) -> (Vec<String>, ExitStatus) {
        kill(self.child.id(), Signal::TERM);
        let lines = self.output.by_ref().lines().map(Result::unwrap).collect();
        (lines, self.child.wait().unwrap())
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have exited
        let _ = self.child.wait();
    }
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Has a short dialogue with the server. Waits in its queue first, if no process serves.
#[track_caller]
fn greet() {
    let mut client = TcpStream::connect("127.0.0.1:25").unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.write_all(b"EHLO client.example\r\nMAIL FROM:<>\r\nQUIT\r\n").unwrap();
    let replies: Vec<String> = BufReader::new(client).lines().map(Result::unwrap).collect();
    assert_eq!(replies, ["220 greeter ready", "250 hello", "502 this server only greets", "221 closing"]);
}

#[track_caller]
fn assert_unprivileged(pid: u32) {
    for thread in process::threads(pid) {
        let sets = [thread.permitted, thread.effective, thread.inheritable, thread.ambient];
        assert_eq!((thread.uid, sets), (vec![WORKER; 4], [0; 4]));
    }
}

#[test]
fn a_worker_in_c_greets_on_port_25_and_its_successor_adopts_the_listener() {
    isolated(|host| {
        let chroot = Chroot::new(host, "chroot");
        let program = compile_example(host, "smtp_greeter", SMTP_GREETER);
        let command = format!(r#"( "{}" "*:25" )"#, program.display());
        let rest = r#"broker { permit "mail" { listen = ( "*:25" ) } } worker { stable_after = 0 }"#;
        let mut broker = Broker::start(host, &sample::worker(&chroot, &command, rest));
        broker.log.wait_for(&["listening on *:25 as the worker"]);
        let before = broker.descriptors();
        greet();
        let worker = broker.worker();
        assert_unprivileged(worker);
        assert_eq!(process::root(worker), chroot.path);
        for _ in 0..5 {
            let worker = broker.worker();
            kill(worker, Signal::KILL);
            greet();
            eventually("another worker", || (broker.worker() != worker).then_some(()));
        }
        broker.await_no_leak(&before);
        assert!(broker.terminate().success());
        assert!(TcpStream::connect("127.0.0.1:25").is_err());
    });
}

/// The control socket's broker for the greeter, which runs as nobody.
fn control() -> String {
    let socket = sample::socket(r#"( "*:25" )"#);
    let socket =
        socket.replace("peer nobody { allow = ( status listen )", "peer nobody { allow = ( listen events )");
    assert!(socket.contains("events"));
    format!(
        r#"security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }} {socket}"#
    )
}

fn start(program: &Path, endpoint: &str) -> Example {
    Example::start(Command::new(program).args([endpoint, SOCKET]), WORKER)
}

fn has_listeners(broker: &Broker, count: u64) -> bool {
    broker.peer().status().listeners_held == count
}

const LISTENING: &str = "listening on *:25 as user 65534\n";

#[test]
fn a_peer_in_c_greets_receives_events_and_stops_its_listener() {
    isolated(|host| {
        let program = compile_example(host, "smtp_greeter", SMTP_GREETER);
        let text = control();
        let broker = Broker::start(host, &text);
        let before = broker.descriptors();
        let mut greeter = start(&program, "*:25");
        assert_eq!(greeter.line(), LISTENING);
        assert_unprivileged(greeter.pid());
        greet();
        broker::config(host, &format!("{text} broker {{ retain = 7 }}"));
        broker.signal(Signal::HUP);
        assert_eq!(greeter.line(), "event 16 \n");
        greet();
        assert!(has_listeners(&broker, 1));
        let (lines, status) = greeter.terminate();
        assert_eq!((&lines[..], status.success()), (&["stopped".to_owned()][..], true));
        assert!(has_listeners(&broker, 0) && resources::tcp_listeners().is_empty());
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_peer_in_c_reports_a_denial_with_its_remedy() {
    isolated(|host| {
        let program = compile_example(host, "smtp_greeter", SMTP_GREETER);
        let _broker = Broker::start(host, &control());
        let output = Command::new(&program).args(["*:587", SOCKET]).uid(WORKER).gid(WORKER).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        let begin = "smtp_greeter: user 65534 is not allowed to listen on *:587. ";
        assert!(message.starts_with(begin) && message.contains("permit"), "{message}");
        assert_eq!(output.status.code(), Some(1));
    });
}

#[test]
fn a_peer_in_c_finds_the_next_broker_after_a_takeover_and_after_a_kill() {
    isolated(|host| {
        let program = compile_example(host, "smtp_greeter", SMTP_GREETER);
        let text = control();
        let mut broker = Broker::start(host, &text);
        let mut greeter = start(&program, "*:25");
        assert_eq!(greeter.line(), LISTENING);
        broker.replace(host, &text);
        // A client that arrives meanwhile waits in the queue of the socket that both brokers share.
        greet();
        assert_eq!(greeter.line(), LISTENING);
        greet();
        broker.signal(Signal::KILL);
        broker.wait_for_exit();
        greet();
        broker = Broker::start(host, &text);
        assert_eq!(greeter.line(), LISTENING);
        greet();
        assert!(has_listeners(&broker, 1));
        assert!(broker.terminate().success());
        eventually("the end of the listener", || resources::tcp_listeners().is_empty().then_some(()));
        // Without a broker the program waits, and SIGTERM ends it.
        let (lines, status) = greeter.terminate();
        assert_eq!((&lines[..], status.success()), (&["stopped".to_owned()][..], true));
    });
}
