//! The strings of the puppet: a worker that hands its channel to the test and then does as it is told.
//!
//! The test speaks for it on the channel; what only the worker itself can show (its descriptors, its
//! environment, what it is refused) it is asked for by word. Its program is `bin/puppet.rs`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use portreeve_protocol::channel;

use crate::chroot::Chroot;
use crate::wait::TIMEOUT;
use crate::{Host, Peer, binaries};

/// Where, in its chroot, a puppet finds its test.
pub const SOCKET: &str = "/control.sock";

/// A place where puppets report.
pub struct WorkerSetup {
    listener: UnixListener,
    /// The puppet's chroot.
    pub chroot: Chroot,
}

/// One running puppet.
pub struct ScriptedWorker {
    control: BufReader<UnixStream>,
}

impl WorkerSetup {
    /// Makes a chroot that holds the puppet's program and a socket to the test.
    pub fn new(host: &Host, name: &str) -> Self {
        let chroot = Chroot::new(host, name);
        std::fs::copy(host.binary(binaries::SCRIPTED_WORKER), chroot.path.join("scripted_worker")).unwrap();
        let socket = chroot.path.join(SOCKET.trim_start_matches('/'));
        let listener = UnixListener::bind(&socket).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&socket, open).unwrap();
        Self { listener, chroot }
    }

    /// Waits for a puppet to report, and takes its channel.
    #[track_caller]
    pub fn accept(&self) -> (ScriptedWorker, Peer) {
        let patience = rustix::event::Timespec::try_from(TIMEOUT).unwrap();
        let mut ready = [rustix::event::PollFd::new(&self.listener, rustix::event::PollFlags::IN)];
        let count = rustix::event::poll(&mut ready, Some(&patience)).unwrap();
        assert_eq!(count, 1, "no worker reported");
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
    /// Has it do something and gives its answer, one line without its end.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        writeln!(self.control.get_mut(), "{command}").unwrap();
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the worker ended while it was told {command:?}");
        line.trim_end().to_owned()
    }
}
