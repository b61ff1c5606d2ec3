//! The cost of `portreeve run` for the program: of a bind(2) that the broker answers, of one that the kernel gets, and of any other
//! system call.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use portreeve_tests::benchmark::{self, Subject, measure};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, Host, binaries, sample};
use rustix::net::{AddressFamily, SocketType, bind, socket};
use rustix::process::getppid;

/// The argument with which this program is the one that binds.
const PROGRAM: &str = "--program";
/// Calls of bind(2) in a round, each of a new socket, which is closed.
const BINDS: usize = 50;
/// Other system calls in a round.
const CALLS: usize = 20_000;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(PROGRAM) => program(),
        _ => benchmark::main("The cost of portreeve run: medians", inside),
    }
}

fn inside(host: &Host) {
    let _broker = Broker::start_with_log_file(host, &sample::control(r#"( "127.0.0.1:80" )"#));
    // The namespaces may hide the path of this program.
    let program = host.path("program");
    std::fs::copy("/proc/self/exe", &program).unwrap();
    let mut run = Command::new(host.binary(binaries::CLIENT));
    run.args(["--socket", SOCKET, "run", "--"]).arg(&program);
    let (mut supervised, mut plain) = (Program::start(run), Program::start(Command::new(program)));
    // The broker keeps port 80.
    for (case, work, of_plain, units) in [
        ("run/privileged-bind", "80", "81", BINDS),
        ("run/bind-passed-on", "2000", "2000", BINDS),
        ("run/other-call", "getppid", "getppid", CALLS),
    ] {
        let subjects = vec![
            Subject::new("portreeve", || supervised.work(work)),
            Subject::new("no filter", || plain.work(of_plain)),
        ];
        measure(case, units, subjects);
    }
}

/// A running program, which works on request.
struct Program {
    requests: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Program {
    fn start(mut command: Command) -> Self {
        let mut child = command.arg(PROGRAM).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let replies = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { requests: child.stdin.take().unwrap(), replies, _child: child }
    }

    fn work(&mut self, work: &str) {
        writeln!(self.requests, "{work}").unwrap();
        assert_eq!(self.replies.next().unwrap().unwrap(), "done");
    }
}

/// Reads what to do from standard input: a number is a port to bind.
fn program() {
    for work in std::io::stdin().lines() {
        match work.unwrap().parse() {
            Ok(port) => (0..BINDS).for_each(|_| bind_to(port)),
            Err(_) => (0..CALLS).for_each(|_| assert!(getppid().is_some())),
        }
        println!("done");
    }
}

fn bind_to(port: u16) {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
}
