//! A stand-in for systemd's notification socket and file-descriptor store: it receives the broker's notifications, stores
//! descriptors and passes them to the next start. See sd_notify(3), sd_pid_notify_with_fds(3) and sd_listen_fds(3).

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

/// See the module.
pub struct ServiceManager {
    address: PathBuf,
    socket: UnixDatagram,
    /// The stored listeners, by name.
    pub fdstore: BTreeMap<String, OwnedFd>,
    /// The stored map of the allowlist, with its name.
    pub allowlist: Option<(String, OwnedFd)>,
    /// The lines that describe the broker's state.
    pub states: Vec<String>,
    /// The lines of the other notifications.
    pub notifications: Vec<String>,
}

/// A broker that the service manager runs.
pub struct Service {
    child: Child,
    tree: ProcessTree,
    /// Its standard error.
    pub log: Log,
}

impl ServiceManager {
    /// A service manager with an empty fdstore.
    pub fn new(host: &Host) -> Self {
        let address = host.path("manager.sock");
        let socket = UnixDatagram::bind(&address).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self {
            address,
            socket,
            fdstore: BTreeMap::new(),
            allowlist: None,
            states: Vec::new(),
            notifications: Vec::new(),
        }
    }

    /// Starts a broker with `FDSTORE=max_stored`, and passes it the stored descriptors.
    pub fn start(&self, program: &Path, config: &Path, max_stored: usize) -> Service {
        // Numbers that are not in use, from which the shell duplicates them to 3 and up.
        let stored = || self.fdstore.iter().chain(self.allowlist.iter().map(|(name, map)| (name, map)));
        let copies: Vec<OwnedFd> =
            stored().map(|(_, fd)| rustix::io::fcntl_dupfd_cloexec(fd, 100).unwrap()).collect();
        for copy in &copies {
            rustix::io::fcntl_setfd(copy, rustix::io::FdFlags::empty()).unwrap();
        }
        let places = copies.iter().zip(3..).map(|(copy, place)| format!("{place}<&{} ", copy.as_raw_fd()));
        let script = format!("exec {}; LISTEN_PID=$$ exec \"$@\"", places.collect::<String>());
        let names: Vec<&str> = stored().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash"]).arg(program).arg("--config").arg(config);
        command.env("NOTIFY_SOCKET", &self.address).env("FDSTORE", max_stored.to_string());
        command.env("LISTEN_FDS", copies.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::default();
        log.follow(child.stderr.take().unwrap());
        Service { tree: ProcessTree::of(child.id()), child, log }
    }

    /// Receives one notification.
    #[track_caller]
    pub fn receive(&mut self) {
        let (mut packet, mut descriptors) = ([0; 4096], Vec::new());
        let received = channel::receive(&self.socket, &mut packet, &mut descriptors)
            .unwrap_or_else(|error| panic!("no notification: {error}{}", resources::tcp_listener_holders()));
        let text = String::from_utf8(packet[..received.bytes].to_vec()).unwrap();
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        match (value("FDNAME="), descriptors.pop()) {
            (Some(name), Some(descriptor)) => {
                assert!(value("FDSTORE=") == Some("1") && value("FDPOLL=") == Some("0"), "{text}");
                assert!(name.len() <= 255 && !name.contains(':'), "{name}");
                match name.starts_with("portreeve-allowlist-") {
                    true => self.allowlist = Some((name.to_owned(), descriptor)),
                    false => drop(self.fdstore.insert(name.to_owned(), descriptor)),
                }
            }
            (Some(name), None) => {
                assert_eq!(value("FDSTOREREMOVE="), Some("1"), "{text}");
                self.fdstore.remove(name);
            }
            (None, _) => {
                let lines = text.lines().map(str::to_owned);
                let (states, others): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with("STATUS="));
                self.states.extend(states);
                self.notifications.extend(others);
            }
        }
        assert!(descriptors.is_empty(), "more than one descriptor: {text}");
    }

    /// Receives notifications until a condition holds.
    #[track_caller]
    pub fn receive_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + TIMEOUT;
        while !holds(self) {
            assert!(Instant::now() < end, "{what}: {:?}", self.notifications);
            self.receive();
        }
    }

    /// Receives notifications until this line arrives, and discards those received by then.
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

    /// Waits until it exits.
    #[track_caller]
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        eventually("the broker to exit", || self.child.try_wait().unwrap())
    }
}

impl Service {
    /// Kills its remaining processes, as a service manager does.
    pub fn kill_all(&mut self) {
        self.tree.record();
        let _ = self.child.kill(); // it may have exited
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
