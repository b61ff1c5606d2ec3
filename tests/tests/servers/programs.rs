//! Programs under `portreeve run`: how tests start them, and that they serve as they are.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use portreeve_tests::broker::{Log, SOCKET};
use portreeve_tests::{Broker, Host, binaries, eventually, isolated, process, resources};
use rustix::process::{Pid, Signal, kill_process};

/// The user and group nobody.
pub const NOBODY: u32 = 65534;

/// A broker that permits user nobody these listeners.
pub fn config(listen: &str) -> String {
    format!(
        r#"
        security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }}
        broker {{
            socket = "{SOCKET}"
            socket_mode = 0666
            permit "servers" {{ listen = {listen} }}
            peer nobody {{ allow = ( listen ) permit = ( servers ) }}
        }}"#
    )
}

/// `portreeve run` with these arguments, as user nobody. Whoever starts the test may ignore signals, which it would inherit.
pub fn command(host: &Host, arguments: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/env");
    command.arg("--default-signal").arg(host.binary(binaries::CLIENT));
    command.args(["--socket", SOCKET, "--timeout", "5", "run"]).args(arguments);
    command.env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).current_dir("/").uid(NOBODY).gid(NOBODY);
    command
}

/// A running `portreeve run`, and what it and its program print.
pub struct Running {
    pub portreeve: Child,
    pub log: Log,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut portreeve = command.spawn().unwrap();
        let log = Log::default();
        log.follow(portreeve.stdout.take().unwrap());
        log.follow(portreeve.stderr.take().unwrap());
        Self { portreeve, log }
    }

    /// Runs a Python program.
    pub fn python(host: &Host, script: &str) -> Self {
        Self::start(command(host, &["--", "/usr/bin/python3", "-u", "-c", script]))
    }

    /// The process of the program.
    pub fn program(&self) -> u32 {
        eventually("the program", || process::children(self.portreeve.id()).first().copied())
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(pid(self.portreeve.id()), signal).unwrap();
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the end of portreeve run", || self.portreeve.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.portreeve.kill(); // it may have ended
        let _ = self.portreeve.wait();
        if std::thread::panicking() {
            self.log.lines().iter().for_each(|line| eprintln!("program: {line}"));
        }
    }
}

/// The server of a worker that is its supervisor: the supervisor's first child.
pub fn server(broker: &Broker) -> u32 {
    eventually("the server", || process::children(broker.worker()).first().copied())
}

/// Waits until a master has two children, none of which is one of the former ones.
#[track_caller]
pub fn await_new_children(master: u32, former: &[u32]) {
    eventually("new children", || {
        let children = process::children(master);
        (children.len() == 2 && children.iter().all(|child| !former.contains(child))).then_some(())
    });
}

pub fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).unwrap()
}

/// The exit code, standard output and standard error of a command.
pub fn outcome(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The reply to a request by HTTP.
pub fn get(address: &str) -> Option<String> {
    let mut connection = TcpStream::connect(address).ok()?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut reply = String::new();
    connection.read_to_string(&mut reply).ok()?;
    Some(reply)
}

#[test]
fn an_unmodified_web_server_serves_port_80_as_an_ordinary_user_without_privileges() {
    isolated(|host| {
        let broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let before = broker.descriptors();
        let directory = host.path("www");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("index.html"), "served as it is").unwrap();
        let folder = directory.to_str().unwrap();
        let mut running = Running::start(command(
            host,
            &["python3", "-u", "-m", "http.server", "--directory", folder, "80"],
        ));
        let program = running.program();
        running.log.wait_for(&["Serving HTTP on 0.0.0.0 port 80"]);
        for thread in process::threads(program) {
            assert_eq!((thread.uid, thread.permitted, thread.effective), (vec![NOBODY; 4], 0, 0));
            assert!(thread.no_new_privs);
        }
        let reply = eventually("a reply", || get("127.0.0.1:80"));
        assert!(reply.ends_with("served as it is"), "{reply}");
        // The program has the listener and neither the channel nor the descriptor of the notifications.
        let descriptors = eventually("the end of the connection", || {
            let descriptors = resources::Descriptors::of(program).0;
            let sockets = descriptors.iter().filter(|one| *one == "socket").count();
            (sockets == 1).then_some(descriptors)
        });
        assert!(!descriptors.iter().any(|one| one.contains("seccomp")), "{descriptors:?}");
        broker.log.wait_for(&["audit: done", "operation=\"listen\"", "arguments=*:80", "via=\"bind\""]);
        running.signal(Signal::TERM);
        assert_eq!(running.wait().code(), Some(128 + 15));
        assert!(!process::is_running(program));
        broker.await_no_leak(&before);
        assert!(resources::tcp_listeners().is_empty());
    });
}

#[test]
fn other_processes_of_the_user_cannot_look_into_the_supervisor() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let running = Running::python(
            host,
            "import os, signal\nprint(os.listdir('/proc/self/fd') and 'ready')\ntry:\n os.listdir(f'/proc/{os.getppid()}/fd')\n\
             except PermissionError: print('denied')\nsignal.pause()",
        );
        running.log.wait_for(&["denied"]);
        assert!(Path::new("/proc").join(running.portreeve.id().to_string()).exists());
    });
}
