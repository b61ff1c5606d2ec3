//! The baseline `helper`: a second process that waits in recv(2), opens the listeners in a fixed-size request, sends them
//! back, and keeps copies until it receives the command to close them. It has no runtime, encoding, policy or log.
//! The baseline `confined` is the same process with the broker's own locks, on itself and on each socket, so it includes the
//! kernel's cost of them. The baseline `duties` also does by hand what the broker has to do for each listener: see [`Duties`].

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Instant, SystemTime};

use portreeve_broker::confine::landlock::{self, Listed, Permitted};
use portreeve_broker::confine::locks;
use portreeve_broker::confine::seccomp::{self, SeccompNeeds, Support};
use portreeve_broker::listener::{Revocability, Revocation};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Resource, Rlimit};

use crate::direct::listener;
use crate::endpoints;

const HELPER: &str = "--helper";
const CONFINED: &str = "--confined-helper";
const DUTIES: &str = "--helper-with-duties";
/// The maximum number of listeners in a request. A request without any closes all.
const MAX_LISTENERS: usize = 200;
/// The size of an endpoint: four bytes of address and two of port.
const ENDPOINT: usize = 6;
/// The ports of [`endpoints`].
const PORTS: RangeInclusive<u16> = endpoints::FIRST..=endpoints::FIRST + endpoints::PORTS - 1;
/// How many sockets can have a lock at once.
const REVOCABLE: usize = 20_000;
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

    /// Starts it with the locks of a broker that allows [`endpoints`].
    pub fn start_confined() -> Self {
        Self::start_as(CONFINED)
    }

    /// Starts it confined and with the broker's duties.
    pub fn start_with_duties() -> Self {
        Self::start_as(DUTIES)
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
    std::env::args().nth(1).is_some_and(|what| [HELPER, CONFINED, DUTIES].contains(&&*what))
}

fn confine() {
    let ports = [PORTS];
    let no_directories: [BorrowedFd<'_>; 0] = [];
    locks::no_new_privs().unwrap();
    let permitted = Permitted { tcp_ports: &ports, socket_directories: &no_directories };
    landlock::restrict(permitted, Listed::Unknown).unwrap();
    seccomp::install(&SeccompNeeds::default(), Support::Present).unwrap();
}

/// What the broker does for each listener besides opening and sending it, done by hand: decide, find out whether the listener
/// exists, enter it into two indexes, and write an audit line with the time and the duration.
struct Duties {
    permitted: (Ipv4Addr, u8, RangeInclusive<u16>),
    by_endpoint: HashMap<SocketAddrV4, u64>,
    by_number: BTreeMap<u64, SocketAddrV4>,
    last: u64,
    lines: String,
    log: File,
}

impl Duties {
    /// The number of buffered bytes from which on they are written, as in the broker.
    const WRITE_THRESHOLD: usize = 32 * 1024;

    fn new() -> Self {
        let log = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        Self {
            permitted: (Ipv4Addr::new(127, 0, 0, 0), 8, PORTS),
            by_endpoint: HashMap::new(),
            by_number: BTreeMap::new(),
            last: 0,
            lines: String::new(),
            log: log.into(),
        }
    }

    fn decide(&self, endpoint: SocketAddrV4) {
        let (block, length, ports) = &self.permitted;
        let prefix = |address: Ipv4Addr| address.to_bits() >> (32 - length);
        assert!(prefix(*endpoint.ip()) == prefix(*block) && ports.contains(&endpoint.port()));
        assert!(!self.by_endpoint.contains_key(&endpoint));
    }

    fn enter(&mut self, endpoint: SocketAddrV4) {
        self.last += 1;
        self.by_endpoint.insert(endpoint, self.last);
        self.by_number.insert(self.last, endpoint);
    }

    /// One line for all listeners of a request.
    fn audit(&mut self, endpoints: impl Iterator<Item = SocketAddrV4>, started: Instant) {
        let lines = &mut self.lines;
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        write!(
            lines,
            "{}.{:06} INFO audit: done peer=root arguments=\"",
            time.as_secs(),
            time.subsec_micros()
        )
        .unwrap();
        endpoints.for_each(|endpoint| write!(lines, "{endpoint}, ").unwrap());
        writeln!(lines, "\" rules=bench.conf:4 duration_us={}", started.elapsed().as_micros()).unwrap();
        if lines.len() > Self::WRITE_THRESHOLD {
            self.log.write_all(lines.as_bytes()).unwrap();
            lines.clear();
        }
    }

    fn release(&mut self) {
        self.by_endpoint.clear();
        self.by_number.clear();
    }
}

/// Serves the channel on standard input until it is closed.
pub fn serve() {
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    let what = std::env::args().nth(1).unwrap();
    let revocation = (what != HELPER).then(|| Revocation::load(REVOCABLE));
    let mut duties = (what == DUTIES).then(Duties::new);
    if revocation.is_some() {
        confine();
    }
    let channel = rustix::stdio::stdin();
    let mut request = [0; REQUEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut kept: Vec<(OwnedFd, Option<Revocability>)> = Vec::new();
    loop {
        let (length, _) = rustix::net::recv(channel, &mut request, RecvFlags::empty()).unwrap();
        let started = duties.is_some().then(Instant::now);
        let places: &[[u8; ENDPOINT]] = request[..length].as_chunks().0;
        let Some((_, places)) = places.split_last() else {
            return;
        };
        let endpoints = places.iter().map(|[a, b, c, d, port @ ..]: &[u8; ENDPOINT]| {
            SocketAddrV4::new([*a, *b, *c, *d].into(), u16::from_ne_bytes(*port))
        });
        if places.is_empty() {
            for (socket, revocability) in kept.drain(..) {
                if let (Some(revocation), Some(how)) = (&revocation, revocability) {
                    revocation.revoke(how, Some(&socket)).unwrap();
                }
            }
            duties.iter_mut().for_each(Duties::release);
        }
        let before = kept.len();
        for endpoint in endpoints.clone() {
            duties.iter().for_each(|duties| duties.decide(endpoint));
            let socket = listener(endpoint);
            let protect = |revocation: &Revocation| {
                revocation.protect(&crate::portreeve::endpoint(endpoint), &socket).unwrap()
            };
            let revocability = revocation.as_ref().map(protect);
            duties.iter_mut().for_each(|duties| duties.enter(endpoint));
            kept.push((socket, revocability));
        }
        let mut descriptors = [channel.as_fd(); MAX_LISTENERS];
        descriptors.iter_mut().zip(&kept[before..]).for_each(|(to, (from, _))| *to = from.as_fd());
        send(channel, &descriptors[..places.len()], &mut space);
        if let (Some(duties), Some(started)) = (&mut duties, started) {
            duties.audit(endpoints, started);
        }
    }
}

fn send(channel: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>], space: &mut [MaybeUninit<u8>]) {
    let mut control = SendAncillaryBuffer::new(space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    rustix::net::sendmsg(channel, &[IoSlice::new(b"r")], &mut control, SendFlags::NOSIGNAL).unwrap();
}
