//! The floor `helper`: a second process that waits in recv(2), makes what a fixed structure asks for, sends it back
//! and keeps its own copy until it is told to close them all: no runtime, no encoding, no policy, no log.
//! As `locked` it works behind the broker's own locks, so what is above it is what the kernel takes for those.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, Command};

use portreeve_broker::confine::landlock::{self, Permitted};
use portreeve_broker::confine::locks;
use portreeve_broker::confine::seccomp::{self, SeccompNeeds};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Resource, Rlimit};

use crate::direct::listener;
use crate::endpoints;

const HELPER: &str = "--helper";
const LOCKED: &str = "--locked-helper";
/// The most listeners in a request, and the request: six bytes an endpoint. None: close what is there.
const MOST: usize = 200;
const ENDPOINT: usize = 6;
const REQUEST: usize = ENDPOINT * (MOST + 1);

/// The process, seen from the one that asks.
pub struct Helper {
    channel: OwnedFd,
    process: Child,
}

impl Helper {
    /// Starts it.
    pub fn start() -> Self {
        Self::start_as(HELPER)
    }

    /// Starts it behind the system call filter and the Landlock rules of a broker that permits [`endpoints`].
    pub fn start_locked() -> Self {
        Self::start_as(LOCKED)
    }

    fn start_as(what: &str) -> Self {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let process = Command::new("/proc/self/exe").arg(what).stdin(theirs).spawn().unwrap();
        Self { channel: ours, process }
    }

    /// Asks for these listeners in one packet, receives them in one, and closes them.
    pub fn batch(&self, endpoints: &[SocketAddrV4]) {
        self.send(endpoints);
        self.receive(endpoints.len());
    }

    /// Asks for each in a packet of its own before it receives the first.
    pub fn pipelined(&self, endpoints: &[SocketAddrV4]) {
        endpoints.chunks(1).for_each(|endpoint| self.send(endpoint));
        endpoints.iter().for_each(|_| self.receive(1));
    }

    /// Has it close what it keeps, and waits for that.
    pub fn release(&self) {
        self.send(&[]);
        self.receive(0);
    }

    fn send(&self, endpoints: &[SocketAddrV4]) {
        let mut request = [0; REQUEST];
        let places: &mut [[u8; ENDPOINT]] = request.as_chunks_mut().0;
        for (place, endpoint) in places.iter_mut().zip(endpoints) {
            place[..4].copy_from_slice(&endpoint.ip().octets());
            place[4..].copy_from_slice(&endpoint.port().to_ne_bytes());
        }
        // One more, so that the packet that asks for none is not empty.
        let length = ENDPOINT * (endpoints.len() + 1);
        rustix::net::send(&self.channel, &request[..length], SendFlags::NOSIGNAL).unwrap();
    }

    fn receive(&self, count: usize) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(&self.channel, &mut [IoSliceMut::new(&mut byte)], &mut control, flags).unwrap();
        let received = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => rights,
            _ => panic!("the helper sent something other than descriptors"),
        });
        assert_eq!(received.map(drop).count(), count);
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether this process was started to be it.
pub fn is_wanted() -> bool {
    std::env::args().nth(1).is_some_and(|what| what == HELPER || what == LOCKED)
}

fn lock() {
    let ports = [endpoints::FIRST..=endpoints::FIRST + endpoints::PORTS - 1];
    let no_directories: [BorrowedFd<'_>; 0] = [];
    locks::no_new_privs().unwrap();
    landlock::restrict(Permitted { tcp_ports: &ports, socket_directories: &no_directories }).unwrap();
    seccomp::install(&SeccompNeeds::default()).unwrap();
}

/// Serves standard input until it is closed.
pub fn serve() {
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    if std::env::args().nth(1).as_deref() == Some(LOCKED) {
        lock();
    }
    let channel = rustix::stdio::stdin();
    let mut request = [0; REQUEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut kept: Vec<OwnedFd> = Vec::new();
    loop {
        let (length, _) = rustix::net::recv(channel, &mut request, RecvFlags::empty()).unwrap();
        let places: &[[u8; ENDPOINT]] = request[..length].as_chunks().0;
        let Some((_, endpoints)) = places.split_last() else {
            return;
        };
        if endpoints.is_empty() {
            kept.clear();
        }
        let (count, before) = (endpoints.len(), kept.len());
        kept.extend(endpoints.iter().map(|[a, b, c, d, port @ ..]: &[u8; ENDPOINT]| {
            listener(SocketAddrV4::new([*a, *b, *c, *d].into(), u16::from_ne_bytes(*port)))
        }));
        let mut descriptors = [channel.as_fd(); MOST];
        descriptors.iter_mut().zip(&kept[before..]).for_each(|(to, from)| *to = from.as_fd());
        send(channel, &descriptors[..count], &mut space);
    }
}

fn send(channel: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>], space: &mut [MaybeUninit<u8>]) {
    let mut control = SendAncillaryBuffer::new(space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    rustix::net::sendmsg(channel, &[IoSlice::new(b"r")], &mut control, SendFlags::NOSIGNAL).unwrap();
}
