//! The broker under test: started with a configuration, awaited until it reports that it is ready, killed with the test.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::process::ProcessTree;
use crate::resources::{self, Descriptors};
use crate::wait::TIMEOUT;
use crate::{Host, Peer, binaries, eventually, process};

/// The control socket's path in the tests' configurations.
pub const SOCKET: &str = "/run/host/broker.sock";
/// The log file of a broker that is started with [`Broker::start_with_log_file`].
pub const LOG: &str = "broker.log";

/// The broker's standard output and standard error, collected as they arrive.
#[derive(Clone, Default)]
pub struct Log(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Log {
    /// Collects the lines of a stream.
    pub fn follow(&self, from: impl std::io::Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                log.0.0.lock().unwrap().push(line);
                log.0.1.notify_all();
            }
        });
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    /// Waits for a line that contains all of `words`, and returns it.
    #[track_caller]
    pub fn wait_for(&self, words: &[&str]) -> String {
        let find = |lines: &[String]| {
            lines.iter().find(|line| words.iter().all(|word| line.contains(word))).cloned()
        };
        let (lines, arrived) = &*self.0;
        let (lines, _) = arrived
            .wait_timeout_while(lines.lock().unwrap(), TIMEOUT, |lines| find(lines).is_none())
            .unwrap();
        let found = find(&lines);
        drop(lines); // a panic prints them
        found.unwrap_or_else(|| panic!("no log line contains all of {words:?}"))
    }
}

/// A running broker.
pub struct Broker {
    child: Child,
    tree: ProcessTree,
    /// Its standard output and standard error.
    pub log: Log,
}

/// The command that starts a broker, for tests that change it.
pub fn command(host: &Host, config: &Path) -> Command {
    let mut command = Command::new(host.binary(binaries::BROKER));
    command.arg("--config").arg(config).stdin(Stdio::null());
    command
}

/// Writes a configuration file that the broker accepts: owned by root and writable by root only.
pub fn config(host: &Host, text: &str) -> PathBuf {
    let path = host.file("portreeve.conf", text);
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

impl Broker {
    /// Starts a broker with this configuration, and returns when it is ready.
    #[track_caller]
    pub fn start(host: &Host, text: &str) -> Self {
        Self::start_command(host, command(host, &config(host, text)))
    }

    /// Starts a successor that takes over from this broker, with this configuration, and returns when it is ready.
    #[track_caller]
    pub fn start_successor(&self, host: &Host, text: &str) -> Self {
        let mut command = command(host, &config(host, text));
        command.arg("--takeover");
        Self::start_command(host, command)
    }

    /// Replaces this broker by a successor as above, and waits for its end.
    #[track_caller]
    pub fn replace(&mut self, host: &Host, text: &str) {
        let next = self.start_successor(host, text);
        assert!(self.wait_for_exit().success());
        *self = next;
    }

    /// Starts a broker by a prepared command, and returns when it has sent READY=1; see sd_notify(3).
    #[track_caller]
    pub fn start_command(host: &Host, mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::launch(host, command)
    }

    /// Starts a broker that logs to a file, so that this process need not read its log.
    pub fn start_with_log_file(host: &Host, text: &str) -> Self {
        let _ = std::fs::remove_file(host.path(LOG)); // it may not exist
        Self::launch_with_log_file(host, command(host, &config(host, text)))
    }

    /// Starts a successor that takes over from the running broker and logs to the same file.
    pub fn start_successor_with_log_file(host: &Host, text: &str) -> Self {
        let mut command = command(host, &config(host, text));
        command.arg("--takeover");
        Self::launch_with_log_file(host, command)
    }

    fn launch_with_log_file(host: &Host, mut command: Command) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(host.path(LOG)).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Self::launch(host, command)
    }

    /// Starts a broker with the output streams of this command, and returns when it is ready.
    #[track_caller]
    pub fn launch(host: &Host, command: Command) -> Self {
        Self::launch_notifying(&host.path("notify.sock"), command)
    }

    /// The same, with the path of the socket on which this process is notified. It must differ from that of a broker which is
    /// started at the same time.
    #[track_caller]
    pub fn launch_notifying(address: &Path, mut command: Command) -> Self {
        let _ = std::fs::remove_file(address);
        let notify = UnixDatagram::bind(address).unwrap();
        let mut child = command.env("NOTIFY_SOCKET", address).spawn().unwrap();
        let log = Log::default();
        if let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) {
            log.follow(output);
            log.follow(errors);
        }
        let broker = Self { tree: ProcessTree::of(child.id()), child, log };
        broker.await_ready(&notify);
        broker
    }

    #[track_caller]
    fn await_ready(&self, notify: &UnixDatagram) {
        let pidfd = pidfd_open(pid_of(&self.child), PidfdFlags::empty()).unwrap();
        let end = Instant::now() + TIMEOUT;
        let mut packet = [0; 4096];
        loop {
            let mut either = [PollFd::new(notify, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
            let remaining = end.saturating_duration_since(Instant::now());
            let events = poll(&mut either, Some(&timespec(remaining))).unwrap();
            assert!(events > 0, "the broker was not ready after {} s", TIMEOUT.as_secs());
            let [message, exit] = either.map(|one| !one.revents().is_empty());
            if message {
                let length = notify.recv(&mut packet).unwrap();
                if packet[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    return;
                }
            } else if exit {
                panic!("the broker exited before it was ready{}", resources::tcp_listener_holders());
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process id of the launcher: the broker's first child.
    pub fn launcher(&self) -> u32 {
        eventually("a launcher", || process::children(self.pid()).first().copied())
    }

    /// The process id of the reader: the broker's last child.
    pub fn reader(&self) -> u32 {
        eventually("a reader", || process::children(self.pid()).last().copied())
    }

    /// The process id of the worker: the launcher's only child.
    pub fn worker(&self) -> u32 {
        let launcher = self.launcher();
        eventually("a worker", || process::children(launcher).first().copied())
    }

    /// Whether the kernel let the broker list its listeners in an allowlist; it does not let the root of a user namespace. If it
    /// did not, the broker has said so.
    pub fn has_allowlist(&self) -> bool {
        let warnings = self.peer().status().warnings.into_vec();
        !warnings.iter().any(|warning| warning.contains("the kernel refused"))
    }

    /// Its open file descriptors.
    pub fn descriptors(&self) -> Descriptors {
        Descriptors::of(self.pid())
    }

    /// Waits until it has no more descriptors than before; fails with the additional ones.
    #[track_caller]
    pub fn await_no_leak(&self, before: &Descriptors) {
        let mut leaked = Vec::new();
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end {
            leaked = self.descriptors().not_in(before);
            if leaked.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("the broker has descriptors that it did not have before: {leaked:?}");
    }

    /// Connects to the control socket, without sending Hello.
    pub fn connect(&self) -> Peer {
        Peer::connect(Path::new(SOCKET)).unwrap()
    }

    /// Connects to the control socket and sends Hello.
    #[track_caller]
    pub fn peer(&self) -> Peer {
        let mut peer = self.connect();
        peer.hello();
        peer
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.tree.record();
        kill_process(pid_of(&self.child), signal).unwrap();
    }

    /// Suspends it until SIGCONT.
    #[track_caller]
    pub fn suspend(&self) {
        process::suspend(self.pid());
    }

    /// Whether it is still running.
    pub fn is_running(&self) -> bool {
        process::is_running(self.pid())
    }

    /// Sends SIGTERM as a service manager does, and waits until it exits.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_for_exit()
    }

    /// Waits until it exits.
    #[track_caller]
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        eventually("the broker to exit", || self.child.try_wait().unwrap())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.tree.record();
        let _ = self.child.kill(); // it may have exited
        let _ = self.child.wait();
        self.tree.kill_descendants();
        if std::thread::panicking() {
            eprintln!("the broker's log:");
            self.log.lines().iter().for_each(|line| eprintln!("{:.500}", line));
        }
    }
}

pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap()
}
