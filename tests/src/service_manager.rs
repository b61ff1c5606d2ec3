//! A service manager as the broker knows it: told things over a socket, it stores descriptors and passes them to the
//! next start. See sd_notify(3), sd_pid_notify_with_fds(3) and sd_listen_fds(3).

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use portreeve_protocol::channel;
use rustix::process::{Signal, kill_process};

use crate::broker::{Log, pid_of};
use crate::process::ProcessTree;
use crate::wait::TIMEOUT;
use crate::{Host, eventually, resources};

/// The service manager.
pub struct ServiceManager {
    address: PathBuf,
    socket: UnixDatagram,
    /// What it stores, by name.
    pub fdstore: BTreeMap<String, OwnedFd>,
    /// Every other line that it was told.
    pub notifications: Vec<String>,
}

/// A broker that it runs.
pub struct Service {
    child: Child,
    tree: ProcessTree,
    /// Its standard error.
    pub log: Log,
}

impl ServiceManager {
    /// One that stores nothing yet.
    pub fn new(host: &Host) -> Self {
        let address = host.path("manager.sock");
        let socket = UnixDatagram::bind(&address).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { address, socket, fdstore: BTreeMap::new(), notifications: Vec::new() }
    }

    /// Starts a broker, which may store so many descriptors and is passed what is stored.
    pub fn start(&self, program: &Path, config: &Path, most: usize) -> Service {
        // Numbers that nothing else has, for the shell to put in their places; they are open in what is executed.
        let copies: Vec<OwnedFd> =
            self.fdstore.values().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 100).unwrap()).collect();
        for copy in &copies {
            rustix::io::fcntl_setfd(copy, rustix::io::FdFlags::empty()).unwrap();
        }
        let places = copies.iter().zip(3..).map(|(copy, place)| format!("{place}<&{} ", copy.as_raw_fd()));
        let script = format!("exec {}; LISTEN_PID=$$ exec \"$@\"", places.collect::<String>());
        let names: Vec<&str> = self.fdstore.keys().map(String::as_str).collect();
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash"]).arg(program).arg("--config").arg(config);
        command.env("NOTIFY_SOCKET", &self.address).env("FDSTORE", most.to_string());
        command.env("LISTEN_FDS", copies.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::default();
        log.follow(child.stderr.take().unwrap());
        Service { tree: ProcessTree::of(child.id()), child, log }
    }

    /// Hears one message.
    #[track_caller]
    pub fn receive(&mut self) {
        let (mut packet, mut descriptors) = ([0; 4096], Vec::new());
        let received =
            channel::receive(&self.socket, &mut packet, &mut descriptors).unwrap_or_else(|error| {
                panic!("the service manager was told nothing: {error}{}", resources::tcp_listener_holders())
            });
        let text = String::from_utf8(packet[..received.bytes].to_vec()).unwrap();
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        match (value("FDNAME="), descriptors.pop()) {
            (Some(name), Some(descriptor)) => {
                assert!(value("FDSTORE=") == Some("1") && value("FDPOLL=") == Some("0"), "{text}");
                assert!(name.len() <= 255 && !name.contains(':'), "{name}");
                self.fdstore.insert(name.to_owned(), descriptor);
            }
            (Some(name), None) => {
                assert_eq!(value("FDSTOREREMOVE="), Some("1"), "{text}");
                self.fdstore.remove(name);
            }
            (None, _) => self.notifications.extend(text.lines().map(str::to_owned)),
        }
        assert!(descriptors.is_empty(), "more descriptors than one came: {text}");
    }

    /// Hears until something holds.
    #[track_caller]
    pub fn receive_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + TIMEOUT;
        while !holds(self) {
            assert!(Instant::now() < end, "{what}: {:?}", self.notifications);
            self.receive();
        }
    }

    /// Hears until it is told this, and forgets what it was told by then.
    #[track_caller]
    pub fn await_notification(&mut self, word: &str) {
        self.receive_until(word, |manager| manager.notifications.iter().any(|heard| heard == word));
        self.notifications.clear();
    }
}

impl Service {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.tree.record();
        kill_process(pid_of(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        eventually("the broker's end", || self.child.try_wait().unwrap())
    }
}

impl Service {
    /// Kills what is left of its processes, as a service manager does.
    pub fn kill_all(&mut self) {
        self.tree.record();
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
        self.tree.kill_descendants();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill_all();
        if std::thread::panicking() {
            eprintln!("the broker's log:");
            self.log.lines().iter().for_each(|line| eprintln!("{line:.500}"));
        }
    }
}
