//! The main purpose: a worker without privileges accepts mail on port 25.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use portreeve_tests::chroot::{Chroot, WORKER};
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, Host, eventually, isolated, process, resources, sample};

const PYTHON: &str = r"
import smtplib, sys
with smtplib.SMTP('127.0.0.1', int(sys.argv[1]), local_hostname='client.example', timeout=20) as client:
    client.sendmail('from@client.example', ['to@mx1.example', 'too@mx1.example'],
        'Subject: ' + sys.argv[2] + '\r\n\r\nA line.\r\n.A line with a dot.\r\n')
";

/// A broker with the sample mail server in a chroot that holds a Maildir and nothing else.
struct MailServer {
    broker: Broker,
    chroot: Chroot,
    maildir: PathBuf,
}

impl MailServer {
    fn start(host: &Host) -> Self {
        let chroot = Chroot::new(host, "chroot");
        let maildir = chroot.worker_directory("/Maildir");
        chroot.worker_directory("/run");
        let command = r#"( /run/host/bin/smtp_worker "--listen" "*:25" "--control" "/run/control" "--greeting" "mx1.example" )"#;
        let permit = r#"broker { permit "mail" { listen = ( "*:25" "*:2525" ) } }"#;
        let broker = Broker::start(host, &sample::worker(&chroot, command, permit));
        let server = Self { broker, chroot, maildir };
        await_ports(&[25]);
        server
    }

    /// The messages in the Maildir, as soon as there are this many.
    fn messages(&self, count: usize) -> Vec<String> {
        eventually("the messages in the Maildir", || {
            let entries = fs::read_dir(self.maildir.join("new")).ok()?;
            // The server delivers meanwhile, so a file that was listed may not be readable yet.
            let messages: Option<Vec<String>> =
                entries.map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).collect();
            messages.filter(|messages| messages.len() == count)
        })
    }

    /// Sends the server a command, as its operator would.
    fn command(&self, line: &str) -> String {
        // The broker may listen for the server before the server has created this socket.
        let socket = self.chroot.path.join("run/control");
        let mut control = eventually("the control socket", || UnixStream::connect(&socket).ok());
        writeln!(control, "{line}").unwrap();
        let mut answer = String::new();
        BufReader::new(control).read_line(&mut answer).unwrap();
        answer
    }
}

fn await_ports(expected: &[u16]) {
    eventually("the listeners", || {
        let ports: Vec<u16> = resources::tcp_listeners().iter().map(|address| address.port()).collect();
        (ports == expected).then_some(())
    });
}

fn send_with_python(port: u16, subject: &str) {
    run(Command::new("python3").args(["-c", PYTHON, &port.to_string(), subject]), "python3");
}

fn send_with_swaks(port: u16, subject: &str) {
    let mut swaks = Command::new("swaks");
    swaks.args(["--server", "127.0.0.1", "--port", &port.to_string(), "--helo", "client.example"]);
    swaks.args(["--from", "from@client.example", "--to", "to@mx1.example", "--header"]);
    let transcript = run(swaks.arg(format!("Subject: {subject}")), "swaks");
    assert!(transcript.contains("220 mx1.example"), "{transcript}");
}

#[test]
fn mail_on_port_25_is_accepted_by_an_unprivileged_worker_in_a_chroot() {
    isolated(|host| {
        let server = MailServer::start(host);
        let before = server.broker.descriptors();
        send_with_python(25, "from Python");
        send_with_swaks(25, "from swaks");
        let messages = server.messages(2);
        let python = messages.iter().find(|text| text.contains("Subject: from Python")).unwrap();
        assert!(python.contains("\n.A line with a dot."), "{python}");
        assert!(messages.iter().any(|text| text.contains("Subject: from swaks")));

        let worker = server.broker.worker();
        assert_eq!(process::root(worker), server.chroot.path);
        for thread in process::threads(worker) {
            assert_eq!((thread.uid, thread.gid, thread.groups), (vec![WORKER; 4], vec![WORKER; 4], vec![]));
            let sets =
                [thread.permitted, thread.effective, thread.inheritable, thread.bounding, thread.ambient];
            assert_eq!((sets, thread.no_new_privs), ([0; 5], true));
        }
        for file in fs::read_dir(server.maildir.join("new")).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().uid(), WORKER);
        }
        server.broker.await_no_leak(&before);
    });
}

#[test]
fn the_worker_opens_and_closes_a_second_listener_at_run_time() {
    isolated(|host| {
        let server = MailServer::start(host);
        let broker_before = server.broker.descriptors();
        let worker = server.broker.worker();
        let worker_before = resources::Descriptors::of(worker);
        for round in 0..3 {
            server.command("start *:2525");
            await_ports(&[25, 2525]);
            send_with_python(2525, "second listener");
            server.messages(round + 1);
            server.command("stop *:2525");
            await_ports(&[25]);
            let refused = TcpStream::connect("127.0.0.1:2525").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        }
        server.broker.await_no_leak(&broker_before);
        eventually("the worker's descriptors", || {
            resources::Descriptors::of(worker).not_in(&worker_before).is_empty().then_some(())
        });
    });
}

#[test]
fn the_worker_cannot_open_a_port_that_is_not_permitted() {
    isolated(|host| {
        let server = MailServer::start(host);
        let answer = server.command("start *:587");
        assert!(answer.contains("587") && answer.contains("permit"), "{answer}");
        await_ports(&[25]);
    });
}

#[test]
fn a_terminated_broker_ends_its_worker_and_leaves_nothing_behind() {
    isolated(|host| {
        let mut server = MailServer::start(host);
        let processes = [server.broker.launcher(), server.broker.worker()];
        let status = server.broker.terminate();
        assert!(status.success(), "{status}");
        eventually("the end of launcher and worker", || {
            processes.iter().all(|pid| !process::is_running(*pid)).then_some(())
        });
        assert!(resources::tcp_listeners().is_empty());
        assert!(!Path::new(portreeve_tests::broker::SOCKET).exists());
    });
}

#[test]
fn a_killed_worker_is_restarted_and_no_client_is_refused() {
    isolated(|host| {
        let server = MailServer::start(host);
        let before = server.broker.descriptors();
        for round in 0..5 {
            let worker = server.broker.worker();
            let pid = rustix::process::Pid::from_raw(worker.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            // The client may connect while no worker runs; the next worker greets it.
            send_with_python(25, "between two workers");
            server.messages(round + 1);
            eventually("another worker", || (server.broker.worker() != worker).then_some(()));
        }
        server.broker.await_no_leak(&before);
    });
}
