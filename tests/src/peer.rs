//! A peer of the broker that uses only the protocol crate, so that it can also send what the client library would not.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use portreeve_protocol::address::{AddAddress, Lease, MoveAddress, Removal, RemoveAddress, RenewAddress};
use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::event::Subscribe;
use portreeve_protocol::message::{
    Hello, Listen, ListenMany, ListenOptions, ListenerId, Listening, Operation, Outcome, Ping, Stop, Stopped,
    Welcome,
};
use portreeve_protocol::status::Status;
use portreeve_protocol::{Event, EventCode, Fault, Header, Kind, List, Text, codec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::broker::SOCKET;
use crate::wait::TIMEOUT;

/// See the module.
pub struct Peer {
    /// The channel, for tests that send raw packets.
    pub channel: UnixDatagram,
    request: u32,
    buffer: Box<[u8]>,
}

/// A received frame.
#[derive(Debug)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its body.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
    /// Whether descriptors were lost because this process could not receive them.
    pub descriptors_lost: bool,
}

impl Frame {
    /// Decodes the frame as the reply to an operation.
    #[track_caller]
    pub fn reply<T: Operation>(self) -> Result<(T::Reply, Vec<OwnedFd>), Fault> {
        assert_eq!(
            usize::from(self.header.descriptors),
            self.descriptors.len(),
            "the numbers of declared and received descriptors differ"
        );
        if self.header.kind == Kind::FAULT {
            return Err(codec::decode(&self.body).unwrap());
        }
        assert_eq!(self.header.kind, T::KIND.reply());
        Ok((codec::decode(&self.body).unwrap(), self.descriptors))
    }
}

/// A request for a listener with default options.
pub fn listen(endpoint: &str) -> Listen {
    Listen::new(endpoint.parse().unwrap(), ListenOptions::default())
}

/// A list of one address.
pub fn one_address<const MAX: usize>(address: &str) -> List<IpAddr, MAX> {
    List::truncated([address.parse().unwrap()])
}

#[track_caller]
fn only<T, const MAX: usize>(results: List<Outcome<T>, MAX>) -> Result<T, Fault> {
    let mut results = results.into_vec();
    assert_eq!(results.len(), 1, "there must be one result for each address");
    match results.remove(0) {
        Outcome::Done(done) => Ok(done),
        Outcome::Fault(fault) => Err(fault),
    }
}

impl Peer {
    /// Makes a peer of an open channel. Reads and writes time out after [`TIMEOUT`].
    pub fn from_channel(channel: UnixDatagram) -> Self {
        channel.set_nonblocking(false).unwrap();
        channel.set_read_timeout(Some(TIMEOUT)).unwrap();
        channel.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { channel, request: 0, buffer: codec::frame_buffer() }
    }

    /// Connects to a control socket, without sending Hello.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self::from_channel(socket.into()))
    }

    /// Connects as another user and group, which the kernel reports to the broker as the peer's.
    pub fn connect_as(path: &Path, uid: u32, gid: u32) -> io::Result<Self> {
        let connect = || {
            // This changes the user of the new thread only, which ends here.
            set_thread_groups(&[])?;
            set_thread_gid(rustix::process::Gid::from_raw(gid))?;
            set_thread_uid(rustix::process::Uid::from_raw(uid))?;
            Self::connect(path)
        };
        std::thread::scope(|scope| scope.spawn(connect).join().unwrap())
    }

    /// Begins a session as this user and group.
    #[track_caller]
    pub fn of_user(uid: u32, gid: u32) -> Self {
        let mut peer = Self::connect_as(SOCKET.as_ref(), uid, gid).unwrap();
        peer.hello();
        peer
    }

    /// Sends a request and returns its number.
    #[track_caller]
    pub fn send<T: Operation>(&mut self, request: &T) -> u32 {
        self.request += 1;
        self.send_numbered(self.request, request);
        self.request
    }

    /// Sends a request with the number 0, to which the broker does not reply.
    pub fn send_without_reply<T: Operation>(&mut self, request: &T) {
        self.send_numbered(0, request);
    }

    fn send_numbered<T: Operation>(&mut self, number: u32, request: &T) {
        let packet = codec::encode(&mut self.buffer, T::KIND, number, 0, request).unwrap();
        channel::send_bytes(&self.channel, packet).unwrap();
    }

    /// Receives one frame.
    pub fn receive(&mut self) -> Result<Frame, ReceiveError> {
        let mut descriptors = Vec::new();
        let packet = channel::receive(&self.channel, &mut self.buffer, &mut descriptors)?;
        let (header, body) = Header::decode(&self.buffer[..packet.bytes]).unwrap();
        Ok(Frame { header, body: body.to_vec(), descriptors, descriptors_lost: packet.descriptors_lost })
    }

    /// Sends a request and waits for its reply. No other request may be in flight.
    #[track_caller]
    pub fn request<T: Operation>(&mut self, request: &T) -> Result<(T::Reply, Vec<OwnedFd>), Fault> {
        let number = self.send(request);
        let frame = self.receive().unwrap_or_else(|error| panic!("no reply to {}: {error}", T::NAME));
        assert_eq!(frame.header.request, number, "the reply belongs to another request");
        frame.reply::<T>()
    }

    /// Sends Hello.
    #[track_caller]
    pub fn hello(&mut self) -> Welcome {
        let hello = Hello { client: Text::new("test").unwrap(), features: 0 };
        self.request(&hello).unwrap().0
    }

    /// Sends Ping and waits for the reply.
    #[track_caller]
    pub fn ping(&mut self) {
        self.request(&Ping {}).unwrap();
    }

    /// Requests a listener.
    #[track_caller]
    pub fn listen(&mut self, endpoint: &str) -> Result<(ListenerId, OwnedFd), Fault> {
        let (Listening { id }, mut descriptors) = self.request(&listen(endpoint))?;
        assert_eq!(descriptors.len(), 1, "the reply must have one descriptor");
        Ok((id, descriptors.remove(0)))
    }

    /// Requests listeners in one request, closes the received copies of their sockets, and returns their numbers.
    #[track_caller]
    pub fn listen_many(&mut self, listens: impl Iterator<Item = Listen>) -> Vec<ListenerId> {
        let (reply, _sockets) = self.request(&ListenMany::truncated(true, listens)).unwrap();
        let id = |outcome: &Outcome<Listening>| match outcome {
            Outcome::Done(Listening { id }) => *id,
            Outcome::Fault(fault) => panic!("{fault}"),
        };
        reply.results.iter().map(id).collect()
    }

    /// Stops listeners.
    #[track_caller]
    pub fn stop(&mut self, listeners: &[ListenerId]) -> Stopped {
        let listeners = List::new(listeners.to_vec()).unwrap();
        self.request(&Stop { listeners }).unwrap().0
    }

    /// Adds one address, without probes and announcements unless `change` sets them.
    #[track_caller]
    pub fn add_address(
        &mut self,
        address: &str,
        change: impl FnOnce(&mut AddAddress),
    ) -> Result<Lease, Fault> {
        let mut add =
            AddAddress { addresses: one_address(address), lease: Some(10), ..AddAddress::default() };
        change(&mut add);
        only(self.request(&add)?.0.results)
    }

    /// Renews the lease of one address.
    #[track_caller]
    pub fn renew_address(&mut self, address: &str) -> Result<Lease, Fault> {
        let renew = RenewAddress { addresses: one_address(address), ..RenewAddress::default() };
        only(self.request(&renew)?.0.results)
    }

    /// Moves one address to another interface of this host.
    #[track_caller]
    pub fn move_address(&mut self, address: &str, interface: &str) -> Result<Lease, Fault> {
        let addresses = one_address(address);
        let interface = Text::new(interface).unwrap();
        only(self.request(&MoveAddress { addresses, interface, ..MoveAddress::default() })?.0.results)
    }

    /// Removes one address.
    #[track_caller]
    pub fn remove_address(&mut self, address: &str) -> Result<Removal, Fault> {
        only(self.request(&RemoveAddress { addresses: one_address(address), epoch: 0 })?.0.results)
    }

    /// Subscribes to events, and returns the recent ones.
    #[track_caller]
    pub fn subscribe(&mut self, all: bool) -> Vec<Event> {
        self.request(&Subscribe { follow: true, all }).unwrap().0.recent.into_vec()
    }

    /// Waits for the next event.
    #[track_caller]
    pub fn next_event(&mut self) -> Event {
        let frame = self.receive().unwrap_or_else(|error| panic!("no event: {error}"));
        assert_eq!((frame.header.kind, frame.header.request), (Kind::EVENT, 0));
        codec::decode(&frame.body).unwrap()
    }

    /// Waits for an event with this code, and ignores others before it.
    #[track_caller]
    pub fn await_event(&mut self, code: EventCode) -> Event {
        loop {
            let event = self.next_event();
            if event.code == code {
                return event;
            }
        }
    }

    /// The broker's status, with the first page of its listeners.
    #[track_caller]
    pub fn status(&mut self) -> Status {
        self.request(&portreeve_protocol::message::StatusRequest { after: 0 }).unwrap().0
    }

    /// Whether the broker has ended this session. Packets that arrived before are discarded.
    #[track_caller]
    pub fn is_disconnected(&mut self) -> bool {
        for _ in 0..1024 {
            match self.receive() {
                Ok(_) => {}
                Err(error) => return matches!(error, ReceiveError::Closed),
            }
        }
        false
    }
}
