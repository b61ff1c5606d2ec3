//! Servers of Debian as workers that take their listeners by descriptor: as an ordinary user, without a capability.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use portreeve_tests::chroot::WORKER;
use portreeve_tests::namespaces::run;
use portreeve_tests::smtp_load::ALWAYS_STABLE;
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, Host, binaries, debian, eventually, isolated, process, resources};
use rustix::process::{Signal, kill_process};

use super::packages::await_haproxy;
use super::programs::{NOBODY, get, pid};

/// The user and group of Exim.
pub const EXIM: u32 = 1077;

pub const PAGE: &str = include_str!("../../../deploy/docs/servers.md");

/// Writes a file of the page on servers, changed, where the page says; here that is the test's own directory.
pub fn write(host: &Host, name: &str, change: (&str, &str)) {
    let title = format!("`/etc/portreeve/{name}`:\n\n```");
    let block = PAGE.split_once(&title).and_then(|(_, block)| block.split_once("```\n"));
    let text = block.and_then(|(block, _)| block.split_once('\n'));
    let (_, text) = text.unwrap_or_else(|| panic!("the page has no {name}"));
    assert!(text.contains(change.0), "{name} does not contain {:?}", change.0);
    let client = host.binary(binaries::CLIENT);
    let text = text.replace(change.0, change.1).replace("/usr/bin/portreeve", client.to_str().unwrap());
    host.file(name, &text.replace("/etc/portreeve/", "/run/host/"));
}

/// Starts the broker with the server of the page as its worker.
pub fn start(host: &Host, server: &str) -> Broker {
    let name = format!("{server}-portreeve.conf");
    write(host, &name, ("", ""));
    start_by(host, &fs::read_to_string(host.path(name)).unwrap())
}

/// The same with this configuration of the broker.
pub fn start_by(host: &Host, text: &str) -> Broker {
    Broker::start(host, &(text.to_owned() + ALWAYS_STABLE))
}

/// Creates a directory that the worker owns.
pub fn directory(path: &str, owner: u32) {
    fs::create_dir_all(path).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
}

/// Every process of the worker is an ordinary user without a capability, now and for ever.
pub fn assert_unprivileged(broker: &Broker, user: u32) {
    let worker = broker.worker();
    for process in process::descendants(worker).into_iter().chain([worker]) {
        // A helper may have ended meanwhile.
        let Ok(text) = fs::read_to_string(format!("/proc/{process}/status")) else { continue };
        let status = process::Status::parse(&text);
        let capabilities = (status.permitted, status.effective, status.bounding);
        assert_eq!((status.uid, capabilities), (vec![user; 4], (0, 0, 0)), "process {process}");
        assert!(status.no_new_privs);
    }
    assert!(process::is_running(worker));
}

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
            kill_process(pid(victim(broker)), Signal::KILL).unwrap();
            eventually("the next worker", || {
                process::children(broker.launcher()).first().copied().filter(|next| *next != worker)
            });
        }
        clients.await_served(30);
        clients.stopped.store(true, Ordering::Relaxed);
        all.into_iter().for_each(|client| client.join().unwrap());
    });
}

#[test]
fn haproxy_serves_reloads_by_sigusr2_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "haproxy");
        write(host, "haproxy.cfg", ("string hello", "string first"));
        let broker = start(host, "haproxy");
        for endpoint in ["127.0.0.1:80", "[::1]:80"] {
            assert!(eventually("a reply", || get(endpoint)).ends_with("first"));
        }
        assert_unprivileged(&broker, NOBODY);
        await_haproxy(broker.worker());
        write(host, "haproxy.cfg", ("string hello", "string second"));
        kill_process(pid(broker.worker()), Signal::USR2).unwrap();
        eventually("the new configuration", || get("127.0.0.1:80").filter(|reply| reply.ends_with("second")));
        assert_unprivileged(&broker, NOBODY);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:80", "[::1]:80"], http);
        assert_eq!(resources::tcp_listeners().len(), 2);
    });
}

#[test]
fn nginx_serves_reloads_by_sighup_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "nginx-light");
        directory("/run/nginx", WORKER);
        write(host, "nginx.conf", ("return 200 hello", "return 200 first"));
        let broker = start(host, "nginx");
        for endpoint in ["127.0.0.1:80", "[::1]:80"] {
            assert!(eventually("a reply", || get(endpoint)).ends_with("first"));
        }
        assert_unprivileged(&broker, NOBODY);
        write(host, "nginx.conf", ("return 200 hello", "return 200 second"));
        kill_process(pid(broker.worker()), Signal::HUP).unwrap();
        eventually("the new configuration", || get("127.0.0.1:80").filter(|reply| reply.ends_with("second")));
        assert_unprivileged(&broker, NOBODY);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:80", "[::1]:80"], http);
        assert_eq!(resources::tcp_listeners().len(), 2);
    });
}

#[test]
fn lighttpd_serves_reloads_by_sigusr1_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        directory("/run/www", WORKER);
        fs::write("/run/www/first", "first").unwrap();
        fs::write("/run/www/second", "second").unwrap();
        let configure = |index| {
            write(host, "lighttpd.conf", ("\"/srv/www\"", "\"/run/www\""));
            let text = fs::read_to_string(host.path("lighttpd.conf")).unwrap();
            host.file("lighttpd.conf", &text.replace("index.txt", index));
        };
        configure("first");
        let broker = start(host, "lighttpd");
        assert!(eventually("a reply", || get("127.0.0.1:80")).ends_with("first"));
        assert_unprivileged(&broker, NOBODY);
        configure("second");
        kill_process(pid(broker.worker()), Signal::USR1).unwrap();
        eventually("the new configuration", || get("127.0.0.1:80").filter(|reply| reply.ends_with("second")));
        assert_unprivileged(&broker, NOBODY);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:80"], http);
        assert_eq!(resources::tcp_listeners().len(), 1);
    });
}

#[test]
fn exim_delivers_mail_from_a_listener_as_its_standard_input_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "exim4-daemon-light");
        host.add_user("Debian-exim", EXIM);
        directory("/var/spool/exim4", EXIM);
        directory("/var/mail", EXIM);
        write(host, "exim.conf", ("", ""));
        let broker = start(host, "exim");
        deliver("127.0.0.1", "before");
        assert_unprivileged(&broker, EXIM);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:25"], smtp);
        deliver("127.0.0.1", "after");
        eventually("both messages", || {
            let files = fs::read_dir("/var/mail/inbox/new").ok()?;
            let messages: Vec<String> =
                files.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).collect();
            let has =
                |subject: &str| messages.iter().any(|text| text.contains(&format!("Subject: {subject}\n")));
            (messages.len() == 2 && has("before") && has("after")).then_some(())
        });
    });
}

#[test]
fn dovecot_accepts_submissions_reloads_by_sighup_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "dovecot-submissiond");
        directory("/run/dovecot", WORKER);
        write(host, "dovecot.conf", ("hostname = mx.example", "hostname = first.example"));
        let broker = start(host, "dovecot");
        let greeting = || {
            let mut connection = TcpStream::connect("127.0.0.1:587").unwrap();
            connection.set_read_timeout(Some(TIMEOUT)).unwrap();
            let mut line = String::new();
            BufReader::new(&mut connection).read_line(&mut line).ok().map(|_| line)
        };
        eventually("a greeting", || greeting().filter(|line| line.starts_with("220 first.example ")));
        assert_unprivileged(&broker, NOBODY);
        write(host, "dovecot.conf", ("hostname = mx.example", "hostname = second.example"));
        kill_process(pid(broker.worker()), Signal::HUP).unwrap();
        eventually("the new name", || greeting().filter(|line| line.starts_with("220 second.example ")));
        assert_unprivileged(&broker, NOBODY);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:587"], smtp);
        assert_eq!(resources::tcp_listeners().len(), 1);
    });
}

/// Sends a message with this subject to a server on port 25.
pub fn deliver(server: &str, subject: &str) {
    let header = format!("Subject: {subject}");
    let mut swaks = Command::new("swaks");
    swaks.args([
        "--server",
        server,
        "--from",
        "from@client.example",
        "--to",
        "to@example",
        "--header",
        &header,
    ]);
    run(&mut swaks, "swaks");
}
