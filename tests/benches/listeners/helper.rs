//! The baseline `helper`: a second process that waits in recv(2), opens the listeners in a fixed-size request, sends them
//! back, and keeps copies until it receives the command to close them. It has no runtime, encoding, policy or log.
//! The baseline `confined` is the same process with the broker's own confinement, so it includes the kernel's cost of that.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, Command};

use portreeve_broker::confine::landlock::{self, Listed, Permitted};
use portreeve_broker::confine::locks;
use portreeve_broker::confine::seccomp::{self, SeccompNeeds, Support};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Resource, Rlimit};

use crate::direct::listener;
use crate::endpoints;

const HELPER: &str = "--helper";
const CONFINED: &str = "--confined-helper";
/// The maximum number of listeners in a request. A request without any closes all.
const MAX_LISTENERS: usize = 200;
/// The size of an endpoint: four bytes of address and two of port.
const ENDPOINT: usize = 6;
const REQUEST: usize = ENDPOINT * (MAX_LISTENERS + 1);

/// The client's side of the process.
pub struct Helper {
    channel: OwnedFd,
    process: Child,
}

impl Helper {
    /// Starts it.
    pub fn start() -> Self {
        Self::start_as(HELPER)
    }

    /// Starts it with the seccomp filter and the Landlock rules of a broker that allows [`endpoints`].
    pub fn start_confined() -> Self {
        Self::start_as(CONFINED)
    }

    fn start_as(what: &str) -> Self {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let process = Command::new("/proc/self/exe").arg(what).stdin(theirs).spawn().unwrap();
        Self { channel: ours, process }
    }

    /// Requests these listeners in one packet, receives them in one, and closes them.
    pub fn batch(&self, endpoints: &[SocketAddrV4]) {
        self.send(endpoints);
        self.receive(endpoints.len());
    }

    /// Requests each listener in a packet of its own before it receives the first.
    pub fn pipelined(&self, endpoints: &[SocketAddrV4]) {
        endpoints.chunks(1).for_each(|endpoint| self.send(endpoint));
        endpoints.iter().for_each(|_| self.receive(1));
    }

    /// Makes the process close its copies, and waits until it has done so.
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
        // One more, so that the packet without endpoints is not empty.
        let length = ENDPOINT * (endpoints.len() + 1);
        rustix::net::send(&self.channel, &request[..length], SendFlags::NOSIGNAL).unwrap();
    }

    fn receive(&self, count: usize) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
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
        let _ = self.process.kill(); // it may have exited
        let _ = self.process.wait();
    }
}

/// Whether this process was started as the helper.
pub fn is_helper_process() -> bool {
    std::env::args().nth(1).is_some_and(|what| what == HELPER || what == CONFINED)
}

fn confine() {
    let ports = [endpoints::FIRST..=endpoints::FIRST + endpoints::PORTS - 1];
    let no_directories: [BorrowedFd<'_>; 0] = [];
    locks::no_new_privs().unwrap();
    let permitted = Permitted { tcp_ports: &ports, socket_directories: &no_directories };
    landlock::restrict(permitted, Listed::Unknown).unwrap();
    seccomp::install(&SeccompNeeds::default(), Support::Present).unwrap();
}

/// Serves the channel on standard input until it is closed.
pub fn serve() {
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    if std::env::args().nth(1).as_deref() == Some(CONFINED) {
        confine();
    }
    let channel = rustix::stdio::stdin();
    let mut request = [0; REQUEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
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
        let mut descriptors = [channel.as_fd(); MAX_LISTENERS];
        descriptors.iter_mut().zip(&kept[before..]).for_each(|(to, from)| *to = from.as_fd());
        send(channel, &descriptors[..count], &mut space);
    }
}

fn send(channel: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>], space: &mut [MaybeUninit<u8>]) {
    let mut control = SendAncillaryBuffer::new(space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    rustix::net::sendmsg(channel, &[IoSlice::new(b"r")], &mut control, SendFlags::NOSIGNAL).unwrap();
}
