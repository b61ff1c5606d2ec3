//! The test's side of the scripted worker: a worker that sends its channel to the test and then executes its commands.
//!
//! The test uses the channel itself. It sends commands for what only the worker can report: its descriptors, its
//! environment, and which system calls are refused. The program is `bin/scripted_worker.rs`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use portreeve_protocol::channel;

use crate::chroot::Chroot;
use crate::wait::TIMEOUT;
use crate::{Host, Peer, binaries};

/// The path of the test's socket in the worker's chroot.
pub const SOCKET: &str = "/control.sock";

/// A chroot with a scripted worker, and the socket on which the test accepts its connections.
pub struct WorkerSetup {
    listener: UnixListener,
    /// The worker's chroot.
    pub chroot: Chroot,
}

/// A running scripted worker.
pub struct ScriptedWorker {
    control: BufReader<UnixStream>,
}

impl WorkerSetup {
    /// Creates the chroot, with the program and the socket in it.
    pub fn new(host: &Host, name: &str) -> Self {
        let chroot = Chroot::new(host, name);
        std::fs::copy(host.binary(binaries::SCRIPTED_WORKER), chroot.path.join("scripted_worker")).unwrap();
        let socket = chroot.path.join(SOCKET.trim_start_matches('/'));
        let listener = UnixListener::bind(&socket).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&socket, open).unwrap();
        Self { listener, chroot }
    }

    /// Waits until a worker connects, and receives its channel.
    #[track_caller]
    pub fn accept(&self) -> (ScriptedWorker, Peer) {
        let patience = rustix::event::Timespec::try_from(TIMEOUT).unwrap();
        let mut ready = [rustix::event::PollFd::new(&self.listener, rustix::event::PollFlags::IN)];
        let count = rustix::event::poll(&mut ready, Some(&patience)).unwrap();
        assert_eq!(count, 1, "no worker has connected");
        let (control, _) = self.listener.accept().unwrap();
        control.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut descriptors = Vec::new();
        channel::receive(&control, &mut [0], &mut descriptors).unwrap();
        let channel = descriptors.pop().unwrap();
        let control = BufReader::new(control);
        (ScriptedWorker { control }, Peer::from_channel(channel.into()))
    }
}

impl ScriptedWorker {
    /// Sends a command and returns the reply, one line without the newline.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        writeln!(self.control.get_mut(), "{command}").unwrap();
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the worker exited during the command {command:?}");
        line.trim_end().to_owned()
    }
}
