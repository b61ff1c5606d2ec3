//! The floors. `direct`: this process, which has the privilege, makes and closes the socket itself.
//! `helper`: a second process that waits in recv(2), makes what a fixed structure asks for, sends it back and
//! closes its own copy: no runtime, no encoding, no policy, nothing remembered.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, Command};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

const HELPER: &str = "--helper";
/// The most listeners in a request, and the request: how many, then their ports.
const MOST: usize = 200;
const REQUEST: usize = 2 * (MOST + 1);
const BACKLOG: i32 = 500;

fn listener(port: u16) -> OwnedFd {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).unwrap();
    rustix::net::listen(&socket, BACKLOG).unwrap();
    socket
}

/// The floor `direct`.
pub fn direct(port: u16) {
    drop(listener(port));
}

/// The floor `helper`, seen from the one that asks.
pub struct Helper {
    channel: OwnedFd,
    process: Child,
}

impl Helper {
    /// Starts the process.
    pub fn start() -> Self {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let process = Command::new("/proc/self/exe").arg(HELPER).stdin(theirs).spawn().unwrap();
        Self { channel: ours, process }
    }

    /// Asks for these listeners in one packet, receives them in one, and closes them.
    pub fn batch(&self, ports: &[u16]) {
        let mut request = [0; REQUEST];
        let words = [u16::try_from(ports.len()).unwrap()];
        let words = words.iter().chain(ports).map(|word| word.to_ne_bytes());
        request.as_chunks_mut().0.iter_mut().zip(words).for_each(|(to, from)| *to = from);
        let length = 2 * (ports.len() + 1);
        rustix::net::send(&self.channel, &request[..length], SendFlags::NOSIGNAL).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(&self.channel, &mut [IoSliceMut::new(&mut byte)], &mut control, flags).unwrap();
        let received = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => rights,
            _ => panic!("the helper sent something other than descriptors"),
        });
        assert_eq!(received.map(drop).count(), ports.len());
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether this process was started as the helper.
pub fn is_helper() -> bool {
    std::env::args().nth(1).as_deref() == Some(HELPER)
}

/// The helper: serves standard input until it is closed.
pub fn help() {
    let channel = rustix::stdio::stdin();
    let mut request = [0; REQUEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    loop {
        let (length, _) = rustix::net::recv(channel, &mut request, RecvFlags::empty()).unwrap();
        let words = request[..length].as_chunks().0;
        let Some((count, ports)) = words.split_first() else {
            return;
        };
        let count = usize::from(u16::from_ne_bytes(*count));
        let mut made: [Option<OwnedFd>; MOST] = [const { None }; MOST];
        for (place, port) in made.iter_mut().zip(&ports[..count]) {
            *place = Some(listener(u16::from_ne_bytes(*port)));
        }
        let mut descriptors = [channel.as_fd(); MOST];
        descriptors.iter_mut().zip(made.iter().flatten()).for_each(|(to, from)| *to = from.as_fd());
        send(channel, &descriptors[..count], &mut space);
    }
}

fn send(channel: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>], space: &mut [MaybeUninit<u8>]) {
    let mut control = SendAncillaryBuffer::new(space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    rustix::net::sendmsg(channel, &[IoSlice::new(b"r")], &mut control, SendFlags::NOSIGNAL).unwrap();
}
