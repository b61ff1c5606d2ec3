//! The sample worker as a program: it receives mail, and starts and stops listeners at run time.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use portreeve::ListenerId;
use portreeve_protocol::message::{Listen, Listening, Stop, Stopped};
use rustix::process::{Pid, Signal, kill_process};
use support::{Broker, broker_at, channel_to};

/// A request as the broker received it.
#[derive(Debug, PartialEq)]
enum Event {
    Listen(ListenerId, SocketAddr),
    Stop(Vec<ListenerId>),
}

/// A broker that returns, for every endpoint, a listener on a free port of the loopback interface.
fn broker(socket: &Path, requests: usize) -> mpsc::Receiver<Event> {
    let (events, seen) = mpsc::channel();
    broker_at(socket, serve(requests, events));
    seen
}

fn serve(requests: usize, events: mpsc::Sender<Event>) -> impl FnOnce(&mut Broker) + Send + 'static {
    move |broker| {
        for number in 1..=requests as u64 {
            let Some(request) = broker.next() else { return };
            if request.is::<Listen>() {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let (id, address) = (ListenerId(number), listener.local_addr().unwrap());
                broker.reply::<Listen>(&request, &Listening { id }, &[listener.into()]);
                events.send(Event::Listen(id, address)).unwrap();
            } else {
                let listeners = request.read::<Stop>().listeners.into_vec();
                broker.reply::<Stop>(
                    &request,
                    &Stopped { unknown: Default::default(), not_revoked: Default::default() },
                    &[],
                );
                events.send(Event::Stop(listeners)).unwrap();
            }
        }
    }
}

/// The worker process, killed when the test ends.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Worker {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut command = Self::command(folder);
        Self::spawn(command.args(["--broker", "broker.sock"]).args(arguments))
    }

    /// The program, executed by a shell that sets LISTEN_PID, as a service manager does.
    fn command(folder: &Path) -> Command {
        let tests = std::env::current_exe().unwrap();
        let program: PathBuf = tests.ancestors().nth(2).unwrap().join("examples/smtp_worker");
        assert!(program.exists(), "build the program first: cargo build -p portreeve --examples");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"]).arg(program);
        command.args(["--maildir", "Maildir", "--greeting", "mx.example"]);
        command.env_clear().current_dir(folder);
        command
    }

    fn spawn(command: &mut Command) -> Self {
        Self(command.stderr(Stdio::piped()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn log(&mut self) -> impl Iterator<Item = String> + use<> {
        BufReader::new(self.0.stderr.take().unwrap()).lines().map_while(Result::ok)
    }
}

fn next(seen: &mpsc::Receiver<Event>) -> Event {
    seen.recv_timeout(Duration::from_secs(20)).unwrap()
}

fn listening(seen: &mpsc::Receiver<Event>) -> SocketAddr {
    match next(seen) {
        Event::Listen(_, address) => address,
        other => panic!("{other:?}"),
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Self(BufReader::new(stream));
        assert_eq!(client.reply(), "220 mx.example ESMTP\r\n");
        client
    }

    /// The last line of a reply.
    fn reply(&mut self) -> String {
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            if line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    /// Sends text and checks the codes of the replies.
    fn send(&mut self, text: &str, codes: &[&str]) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
        for code in codes {
            let reply = self.reply();
            assert!(reply.starts_with(code), "{reply} to {text}");
        }
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    (folder, socket)
}

#[test]
fn a_pipelined_message_is_stored_with_trace_fields_and_without_dot_stuffing() {
    let (folder, socket) = folder();
    let seen = broker(&socket, 1);
    let _worker = Worker::start(folder.path(), &["--listen", "*:25"]);
    let mut client = Client::connect(listening(&seen));
    client.send(
        "EHLO c.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<d@e.example>\r\nDATA\r\n",
        &["250", "250", "250", "354"],
    );
    client.send("Subject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n", &["250", "221"]);
    let new: Vec<_> = std::fs::read_dir(folder.path().join("Maildir/new")).unwrap().collect();
    assert_eq!(new.len(), 1);
    let message = std::fs::read_to_string(new[0].as_ref().unwrap().path()).unwrap();
    assert!(message.starts_with("Return-Path: <a@b.example>\r\nReceived: from c.example ([127.0.0.1])\r\n"));
    assert!(message.contains("\tby mx.example with ESMTP id ") && message.contains("for <d@e.example>;\r\n"));
    assert!(message.ends_with(" +0000\r\nSubject: x\r\n\r\n.dot\r\n"), "{message}");
}

#[test]
fn long_lines_long_messages_and_bare_line_ends_are_refused_and_the_dialogue_continues() {
    let (folder, socket) = folder();
    let seen = broker(&socket, 1);
    let _worker = Worker::start(folder.path(), &["--listen", "*:25", "--max-size", "20"]);
    let mut client = Client::connect(listening(&seen));
    client.send(&format!("NOOP {}\r\nEHLO c\r\n", "x".repeat(100_000)), &["500", "250"]);
    let envelope = "MAIL FROM:<>\r\nRCPT TO:<d@e>\r\nDATA\r\n";
    client.send(envelope, &["250", "250", "354"]);
    client.send(&format!("{}\r\n.\r\n", "x".repeat(21)), &["552"]);
    client.send(envelope, &["250", "250", "354"]);
    client.send("a\n.\nMAIL\r\n.\r\n", &["554"]);
    client.send("QUIT\r\n", &["221"]);
    for part in ["new", "tmp"] {
        assert_eq!(std::fs::read_dir(folder.path().join("Maildir").join(part)).unwrap().count(), 0);
    }
}

#[test]
fn signals_and_commands_start_and_stop_listeners() {
    let (folder, socket) = folder();
    let seen = broker(&socket, 4);
    let mut worker =
        Worker::start(folder.path(), &["--toggle", "*:587", "--listen", "*:25", "--control", "control.sock"]);
    let mut log = worker.log();
    listening(&seen);
    worker.signal(Signal::USR1);
    let second = listening(&seen);
    let mut dialogue = Client::connect(second);
    worker.signal(Signal::USR2);
    assert_eq!(next(&seen), Event::Stop(vec![ListenerId(2)]));
    assert!(log.any(|line| line == "smtp_worker: *:587 is stopped"));
    assert!(TcpStream::connect(second).is_err());
    dialogue.send("NOOP\r\n", &["250"]);

    let mut control = BufReader::new(UnixStream::connect(folder.path().join("control.sock")).unwrap());
    let mut ask = |line: &str| {
        control.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        control.read_line(&mut answer).unwrap();
        answer
    };
    assert_eq!(ask("start *:2525\n"), "ok *:2525 is being served\n");
    assert_eq!(ask("list\n"), "ok *:25 *:2525\n");
    assert_eq!(ask("stop *:587\n"), "error *:587 is not being served\n");
    // The broker closes the session after its fourth request.
    assert!(log.any(|line| line.contains("the broker closed the session")));
    assert_eq!(ask("list\n"), "ok *:25 *:2525\n");
    Client::connect(listening(&seen)).send("QUIT\r\n", &["221"]);
}

#[test]
fn after_sigterm_an_open_transaction_is_finished_and_the_exit_code_is_0() {
    let (folder, socket) = folder();
    let seen = broker(&socket, 1);
    let mut worker = Worker::start(folder.path(), &["--listen", "*:25", "--grace", "60"]);
    let mut log = worker.log();
    let address = listening(&seen);
    let (mut idle, mut busy) = (Client::connect(address), Client::connect(address));
    busy.send("EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<d@e>\r\n", &["250", "250", "250"]);
    worker.signal(Signal::TERM);
    assert!(log.any(|line| line == "smtp_worker: finishing open dialogues"));
    assert!(idle.reply().starts_with("421"));
    assert!(TcpStream::connect(address).is_err());
    busy.send("DATA\r\n", &["354"]);
    busy.send("x\r\n.\r\n", &["250", "421"]);
    assert_eq!(worker.0.wait().unwrap().code(), Some(0));
}

#[test]
fn inherited_listeners_and_an_inherited_channel_are_used() {
    let (folder, _) = folder();
    let (events, seen) = mpsc::channel();
    let (channel, _thread) = channel_to(serve(1, events));
    let bound = TcpListener::bind("127.0.0.1:0").unwrap();
    let passed = bound.local_addr().unwrap();
    let mut command = Worker::command(folder.path());
    let map = |parent_fd, child_fd| FdMapping { parent_fd, child_fd };
    command.args(["--listen", "*:25"]).envs([("LISTEN_FDS", "1"), ("PORTREEVE_CHANNEL", "7")]);
    command.fd_mappings(vec![map(bound.into(), 3), map(channel.into(), 7)]).unwrap();
    let _worker = Worker::spawn(&mut command);
    drop(command);
    Client::connect(listening(&seen)).send("QUIT\r\n", &["221"]);
    Client::connect(passed).send("QUIT\r\n", &["221"]);
}

#[test]
fn an_invalid_channel_is_named_and_the_exit_code_is_1() {
    let (folder, _) = folder();
    let cases = [
        ("x", "PORTREEVE_CHANNEL=\"x\" is not a number"),
        ("9", "descriptor 9 was not inherited"),
        ("2", "descriptor 2 was not inherited"),
        ("5", "descriptor 5 is not a sequenced-packet Unix socket"),
        ("3", "descriptor 3 was taken before"),
    ];
    for (value, why) in cases {
        let bound = || -> OwnedFd { TcpListener::bind("127.0.0.1:0").unwrap().into() };
        let map = |child_fd| FdMapping { parent_fd: bound(), child_fd };
        let mut command = Worker::command(folder.path());
        command.envs([("LISTEN_FDS", "1"), ("PORTREEVE_CHANNEL", value)]);
        command.fd_mappings(vec![map(3), map(5)]).unwrap();
        let mut worker = Worker::spawn(&mut command);
        assert!(worker.log().any(|line| line.contains(why)), "{value}: {why}");
        assert_eq!(worker.0.wait().unwrap().code(), Some(1));
    }
}
