//! The floor `echo`: a second process that sends back each packet of a channel, as large as the broker's.

use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use portreeve_protocol::frame::HEADER_LENGTH;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const ECHO: &str = "--echo";
const PACKET: [u8; HEADER_LENGTH] = [0; HEADER_LENGTH];

/// The process, seen from the one that asks.
pub struct Echo {
    channel: OwnedFd,
    process: Child,
}

impl Echo {
    /// Starts it.
    pub fn start() -> Self {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let process = Command::new("/proc/self/exe").arg(ECHO).stdin(theirs).spawn().unwrap();
        Self { channel: ours, process }
    }

    /// There and back.
    pub fn echo(&self) {
        rustix::net::send(&self.channel, &PACKET, SendFlags::NOSIGNAL).unwrap();
        let mut packet = PACKET;
        let (length, _) = rustix::net::recv(&self.channel, &mut packet, RecvFlags::empty()).unwrap();
        assert_eq!(length, PACKET.len());
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether this process was started to be it.
pub fn is_wanted() -> bool {
    std::env::args().nth(1).as_deref() == Some(ECHO)
}

/// Serves standard input until it is closed.
pub fn serve() {
    let channel = rustix::stdio::stdin();
    let mut packet = [0; 2 * PACKET.len()];
    loop {
        let (length, _) = rustix::net::recv(channel, &mut packet, RecvFlags::empty()).unwrap();
        if length == 0 {
            return;
        }
        rustix::net::send(channel, &packet[..length], SendFlags::NOSIGNAL).unwrap();
    }
}
