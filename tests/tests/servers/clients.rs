//! Clients of the servers: steady ones, while a server is killed, and one that sends a message.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use portreeve_tests::namespaces::run;
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, eventually, process};
use rustix::process::{Signal, kill_process};

use crate::programs::pid;

/// What a client does with a connection: true if it was served. An error means that the server closed the connection.
pub type Talk = fn(&mut TcpStream) -> std::io::Result<bool>;

pub fn http(connection: &mut TcpStream) -> std::io::Result<bool> {
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut reply = String::new();
    connection.read_to_string(&mut reply)?;
    Ok(reply.starts_with("HTTP/1."))
}

pub fn smtp(connection: &mut TcpStream) -> std::io::Result<bool> {
    let mut greeting = [0; 4];
    connection.read_exact(&mut greeting)?;
    Ok(&greeting == b"220 ")
}

/// Ten clients that connect again and again to the endpoints.
struct SteadyClients {
    stopped: AtomicBool,
    served: AtomicUsize,
}

impl SteadyClients {
    fn run(&self, endpoint: SocketAddr, talk: Talk) {
        while !self.stopped.load(Ordering::Relaxed) {
            let mut connection = TcpStream::connect_timeout(&endpoint, TIMEOUT)
                .unwrap_or_else(|error| panic!("a client of {endpoint} could not connect: {error}"));
            connection.set_read_timeout(Some(TIMEOUT)).unwrap();
            match talk(&mut connection) {
                Ok(true) => {
                    self.served.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false) => {}
                Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock, "{endpoint} does not reply"),
            }
        }
    }

    fn await_served(&self, more: usize) {
        let before = self.served.load(Ordering::Relaxed);
        eventually("served clients", || (self.served.load(Ordering::Relaxed) >= before + more).then_some(()));
    }
}

/// Kills a process of the worker three times while ten clients connect: each of them is accepted, and they are served by the next
/// worker.
pub fn kill_under_steady_connections(
    broker: &Broker,
    victim: impl Fn(&Broker) -> u32,
    endpoints: &[&str],
    talk: Talk,
) {
    let clients = SteadyClients { stopped: AtomicBool::new(false), served: AtomicUsize::new(0) };
    let clients = &clients;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..10)
            .map(|number| {
                let endpoint = endpoints[number % endpoints.len()].parse().unwrap();
                scope.spawn(move || clients.run(endpoint, talk))
            })
            .collect();
        for _ in 0..3 {
            clients.await_served(30);
            let worker = broker.worker();
            // A server that is just starting may replace its first process.
            eventually("a process to kill", || kill_process(pid(victim(broker)), Signal::KILL).ok());
            eventually("the next worker", || {
                process::children(broker.launcher()).first().copied().filter(|next| *next != worker)
            });
        }
        clients.await_served(30);
        clients.stopped.store(true, Ordering::Relaxed);
        all.into_iter().for_each(|client| client.join().unwrap());
    });
}

/// The first line of a mail server on this port; `None` if there is none.
pub fn greeting(port: u16) -> Option<String> {
    let connection = TcpStream::connect(("127.0.0.1", port)).ok()?;
    connection.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).ok().map(|_| line)
}

/// Sends a message with this subject to a server on this port.
#[track_caller]
pub fn deliver(port: u16, to: &str, subject: &str) {
    let (port, header) = (port.to_string(), format!("Subject: {subject}"));
    let mut swaks = Command::new("swaks");
    swaks.args(["--server", "127.0.0.1", "--port", &port, "--from", "from@client.example", "--to", to]);
    run(swaks.args(["--helo", "client.example", "--header", &header]), "swaks");
}
