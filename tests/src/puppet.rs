//! The strings of the puppet: a worker that hands its channel to the test and then does as it is told.
//!
//! The test speaks for it on the channel; what only the worker itself can show (its descriptors, its
//! environment, what it is refused) it is asked for by word. Its program is `bin/puppet.rs`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use portreeve_protocol::channel;

use crate::chroot::Chroot;
use crate::wait::PATIENCE;
use crate::{Host, Peer, binaries};

/// Where, in its chroot, a puppet finds its test.
pub const SOCKET: &str = "/puppet.sock";

/// A place where puppets report.
pub struct Stage {
    listener: UnixListener,
    /// The puppet's chroot.
    pub chroot: Chroot,
}

/// One running puppet.
pub struct Puppet {
    control: BufReader<UnixStream>,
}

impl Stage {
    /// Makes a chroot that holds the puppet's program and a socket to the test.
    pub fn new(host: &Host, name: &str) -> Self {
        let chroot = Chroot::new(host, name);
        std::fs::copy(host.binary(binaries::PUPPET), chroot.path.join("puppet")).unwrap();
        let socket = chroot.path.join(SOCKET.trim_start_matches('/'));
        let listener = UnixListener::bind(&socket).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&socket, open).unwrap();
        Self { listener, chroot }
    }

    /// Waits for a puppet to report, and takes its channel.
    #[track_caller]
    pub fn enter(&self) -> (Puppet, Peer) {
        let patience = rustix::event::Timespec::try_from(PATIENCE).unwrap();
        let mut ready = [rustix::event::PollFd::new(&self.listener, rustix::event::PollFlags::IN)];
        let count = rustix::event::poll(&mut ready, Some(&patience)).unwrap();
        assert_eq!(count, 1, "no worker reported");
        let (control, _) = self.listener.accept().unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut descriptors = Vec::new();
        channel::receive(&control, &mut [0], &mut descriptors).unwrap();
        let channel = descriptors.pop().unwrap();
        let control = BufReader::new(control);
        (Puppet { control }, Peer::over(channel.into()))
    }
}

impl Puppet {
    /// Has it do something and gives its answer, one line without its end.
    #[track_caller]
    pub fn tell(&mut self, command: &str) -> String {
        writeln!(self.control.get_mut(), "{command}").unwrap();
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the worker ended while it was told {command:?}");
        line.trim_end().to_owned()
    }
}
