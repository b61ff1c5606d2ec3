//! The baseline `echo`: a second process that returns each packet of a channel. The packets are as large as the broker's.

use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use portreeve_protocol::frame::HEADER_LENGTH;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const ECHO: &str = "--echo";
const PACKET: [u8; HEADER_LENGTH] = [0; HEADER_LENGTH];

/// The client's side of the process.
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

    /// Sends a packet and receives it back.
    pub fn echo(&self) {
        rustix::net::send(&self.channel, &PACKET, SendFlags::NOSIGNAL).unwrap();
        let mut packet = PACKET;
        let (length, _) = rustix::net::recv(&self.channel, &mut packet, RecvFlags::empty()).unwrap();
        assert_eq!(length, PACKET.len());
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have exited
        let _ = self.process.wait();
    }
}

/// Whether this process was started as the echo process.
pub fn is_echo_process() -> bool {
    std::env::args().nth(1).as_deref() == Some(ECHO)
}

/// Serves the channel on standard input until it is closed.
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
