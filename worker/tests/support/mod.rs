//! A broker for tests: the other end of a channel, in a thread, with replies that the test chooses.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::thread::JoinHandle;

use portreeve::{self, Channel, Endpoint, ListenerId};
use portreeve_protocol::address::{AddressPage, ListAddresses};
use portreeve_protocol::message::{
    Hello, Listen, ListenMany, Listening, ListeningMany, OPERATIONS, Outcome, Ping, Pong, Stop, Stopped,
    Welcome,
};
use portreeve_protocol::{Fault, FaultCode, Header, Kind, List, Operation, Text, channel, codec};

/// A request as the broker received it.
pub struct ReceivedRequest {
    pub header: Header,
    pub body: Vec<u8>,
}

impl ReceivedRequest {
    pub fn is<O: Operation>(&self) -> bool {
        self.header.kind == O::KIND
    }

    pub fn read<O: Operation>(&self) -> O {
        assert!(self.is::<O>(), "{} was expected, not {:?}", O::NAME, self.header);
        codec::decode(&self.body).unwrap()
    }
}

/// The broker's end of a channel.
pub struct Broker {
    pub channel: UnixDatagram,
    buffer: Box<[u8]>,
}

impl Broker {
    /// The next request; `None` if the client has closed the session.
    pub fn next(&mut self) -> Option<ReceivedRequest> {
        let bytes = channel::receive_bytes(&self.channel, &mut self.buffer).ok()?;
        let (header, body) = Header::decode(&self.buffer[..bytes]).unwrap();
        let body = body.to_vec();
        Some(ReceivedRequest { header, body })
    }

    pub fn frame<T: serde::Serialize>(&mut self, kind: Kind, request: u32, message: &T, sockets: &[OwnedFd]) {
        let count = u8::try_from(sockets.len()).unwrap();
        let frame = codec::encode(&mut self.buffer, kind, request, count, message).unwrap();
        let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
        // A client may close the session before it has the reply to the request of a dropped guard.
        if let Err(error) = channel::send(&self.channel, frame, &sockets) {
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        }
    }

    pub fn reply<O: Operation>(&mut self, request: &ReceivedRequest, reply: &O::Reply, sockets: &[OwnedFd]) {
        self.frame(O::KIND.reply(), request.header.request, reply, sockets);
    }

    pub fn refuse(&mut self, request: &ReceivedRequest, fault: &Fault) {
        self.frame(Kind::FAULT, request.header.request, fault, &[]);
    }

    pub fn greet(&mut self) {
        self.greet_with(0);
    }

    /// Accepts the session with these features.
    pub fn greet_with(&mut self, features: u64) {
        let request = self.next().unwrap();
        request.read::<Hello>();
        let welcome = Welcome {
            broker: 1,
            release: Text::truncated("test"),
            features,
            capabilities: 0,
            peer: Text::truncated("test"),
            operations: List::truncated(OPERATIONS.iter().map(|(_, name)| Text::truncated(name))),
        };
        self.reply::<Hello>(&request, &welcome, &[]);
    }

    /// Replies with an empty page of addresses.
    pub fn no_addresses(&mut self, request: &ReceivedRequest) {
        request.read::<ListAddresses>();
        let page = AddressPage { fenced: true, ..AddressPage::default() };
        self.reply::<ListAddresses>(request, &page, &[]);
    }

    /// Replies as a broker that allows everything except odd ports: every socket is a [`marker`] of its endpoint's port.
    pub fn reply_default(&mut self, request: &ReceivedRequest) {
        if request.is::<Ping>() {
            self.reply::<Ping>(request, &Pong {}, &[]);
        } else if request.is::<Listen>() {
            match outcome(&request.read::<Listen>()) {
                Ok((id, socket)) => self.reply::<Listen>(request, &Listening { id }, &[socket]),
                Err(fault) => self.refuse(request, &fault),
            }
        } else if request.is::<ListenMany>() {
            let mut sockets = Vec::new();
            let requests = request.read::<ListenMany>();
            let results = List::truncated(requests.requests().map(|listen| match outcome(&listen) {
                Ok((id, socket)) => {
                    sockets.push(socket);
                    Outcome::Done(Listening { id })
                }
                Err(fault) => Outcome::Fault(fault),
            }));
            self.reply::<ListenMany>(request, &ListeningMany { results }, &sockets);
        } else {
            request.read::<Stop>();
            let unknown = List::default();
            self.reply::<Stop>(request, &Stopped { unknown, not_revoked: Default::default() }, &[]);
        }
    }
}

/// Odd ports are denied, so that replies with and without a socket are mixed.
fn outcome(listen: &Listen) -> Result<(ListenerId, OwnedFd), Fault> {
    let port = listen.endpoint.inet().unwrap().port;
    if port % 2 == 1 {
        return Err(Fault::new(FaultCode::Denied, &port.to_string()));
    }
    Ok((ListenerId(port.into()), marker(port)))
}

/// A descriptor that a port can be read from.
pub fn marker(port: u16) -> OwnedFd {
    let (read, write) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut &write, &port.to_le_bytes()).unwrap();
    read.into()
}

/// The port of a [`marker`].
pub fn read_marker(socket: OwnedFd) -> u16 {
    let mut bytes = Vec::new();
    File::from(socket).read_to_end(&mut bytes).unwrap();
    u16::from_le_bytes(bytes.try_into().unwrap())
}

pub fn endpoint(port: u16) -> Endpoint {
    format!("127.0.0.1:{port}").parse().unwrap()
}

pub fn listen(port: u16) -> portreeve::Listen {
    portreeve::Listen::new(endpoint(port))
}

/// A channel to a thread that runs `serve` on the other end.
pub fn broker<T: Send + 'static>(
    serve: impl FnOnce(&mut Broker) -> T + Send + 'static,
) -> (Channel, JoinHandle<T>) {
    broker_with(0, serve)
}

/// The same, with these features.
pub fn broker_with<T: Send + 'static>(
    features: u64,
    serve: impl FnOnce(&mut Broker) -> T + Send + 'static,
) -> (Channel, JoinHandle<T>) {
    let (theirs, thread) = channel_with(features, serve);
    (theirs.into(), thread)
}

/// The same, as a socket.
pub fn channel_to<T: Send + 'static>(
    serve: impl FnOnce(&mut Broker) -> T + Send + 'static,
) -> (UnixDatagram, JoinHandle<T>) {
    channel_with(0, serve)
}

fn channel_with<T: Send + 'static>(
    features: u64,
    serve: impl FnOnce(&mut Broker) -> T + Send + 'static,
) -> (UnixDatagram, JoinHandle<T>) {
    let (ours, theirs) = channel::pair().unwrap();
    ours.set_nonblocking(false).unwrap();
    let thread = std::thread::spawn(move || {
        let mut broker = Broker { channel: ours, buffer: codec::frame_buffer() };
        broker.greet_with(features);
        serve(&mut broker)
    });
    (theirs, thread)
}

/// A control socket at `path` that accepts one session and runs `serve` in a thread.
pub fn broker_at<T: Send + 'static>(
    path: &std::path::Path,
    serve: impl FnOnce(&mut Broker) -> T + Send + 'static,
) -> JoinHandle<T> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    // Programs that other tests start must not inherit the sockets of this one.
    let flags = SocketFlags::CLOEXEC;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    std::thread::spawn(move || {
        let mut broker = Broker {
            channel: rustix::net::accept_with(&listener, flags).unwrap().into(),
            buffer: codec::frame_buffer(),
        };
        broker.greet();
        serve(&mut broker)
    })
}
