//! A session without the client library: it sends any bytes, and nothing that the broker does makes it panic.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::frame::HEADER_LENGTH;
use portreeve_protocol::message::{Hello, Listen, ListenerId, Listening, Operation, Stop};
use portreeve_protocol::{Event, Fault, FaultCode, Header, Kind, List, Text, codec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Why a request has no result.
#[derive(Debug)]
pub enum Failure {
    /// The broker refused it.
    Fault(Fault),
    /// The session ended, or no reply came in time.
    Lost(String),
}

impl Failure {
    /// Whether the broker refused it with this code.
    pub fn is(&self, code: FaultCode) -> bool {
        matches!(self, Failure::Fault(fault) if fault.code == code)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Fault(fault) => write!(out, "refused: {fault}"),
            Failure::Lost(why) => out.write_str(why),
        }
    }
}

/// A reply and its descriptors.
pub type Reply<T> = Result<(<T as Operation>::Reply, Vec<OwnedFd>), Failure>;

/// See the module.
pub struct Session {
    /// The channel, for raw packets and its socket options.
    pub channel: UnixDatagram,
    buffer: Box<[u8]>,
    events: VecDeque<Event>,
}

fn invalid(error: impl std::fmt::Display) -> Failure {
    Failure::Lost(format!("an invalid reply: {error}"))
}

/// Unique in this process: sessions can share a channel.
fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Session {
    /// A session on an open channel. `patience` limits how long it waits to send or receive.
    pub fn new(channel: UnixDatagram, patience: Duration) -> Self {
        // These fail only for a timeout of 0.
        let _ = channel.set_nonblocking(false);
        let _ = channel.set_read_timeout(Some(patience));
        let _ = channel.set_write_timeout(Some(patience));
        Self { channel, buffer: codec::frame_buffer(), events: VecDeque::new() }
    }

    /// Connects as the user of this thread, without sending Hello.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, Failure> {
        let lost = |error: rustix::io::Errno| Failure::Lost(format!("cannot connect: {error}"));
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(lost)?;
        // connect(2) waits for a free place in the queue of the control socket for as long as SO_SNDTIMEO says.
        let session = Self::new(socket.into(), patience);
        rustix::net::connect(&session.channel, &SocketAddrUnix::new(path).map_err(lost)?).map_err(lost)?;
        Ok(session)
    }

    /// Connects and sends Hello.
    pub fn open(path: &Path, patience: Duration) -> Result<Self, Failure> {
        let mut session = Self::connect(path, patience)?;
        session.hello("adversary")?;
        Ok(session)
    }

    /// Sends Hello with this name of the client.
    pub fn hello(&mut self, client: &str) -> Result<(), Failure> {
        self.ask(&Hello { client: Text::truncated(client), features: 0 }).map(drop)
    }

    /// Sends bytes. False if the channel is full or closed.
    pub fn send_bytes(&self, packet: &[u8]) -> bool {
        channel::send_bytes(&self.channel, packet).is_ok()
    }

    /// Sends a request with this number; 0 asks for no reply. False if the channel is full or closed.
    pub fn send_numbered<T: Operation>(&mut self, number: u32, request: &T) -> bool {
        let packet = codec::encode(&mut self.buffer, T::KIND, number, 0, request).unwrap();
        channel::send_bytes(&self.channel, packet).is_ok()
    }

    /// Sends a request, the reply to which is not awaited.
    pub fn send<T: Operation>(&mut self, request: &T) -> bool {
        self.send_numbered(next_number(), request)
    }

    /// Receives one frame: its header, its body in the buffer, and its descriptors.
    fn receive(&mut self) -> Result<(Header, Vec<OwnedFd>), Failure> {
        let mut descriptors = Vec::new();
        let packet = channel::receive(&self.channel, &mut self.buffer, &mut descriptors).map_err(
            |error| match error {
                ReceiveError::Closed => Failure::Lost("the broker ended the session".to_owned()),
                error => Failure::Lost(format!("no reply: {error}")),
            },
        )?;
        let frame = Header::decode(&self.buffer[..packet.bytes]);
        let (header, _) = frame.map_err(invalid)?;
        Ok((header, descriptors))
    }

    fn body(&self, header: &Header) -> &[u8] {
        &self.buffer[HEADER_LENGTH..HEADER_LENGTH + usize::from(header.body)]
    }

    /// Sends a request and waits for its reply. Replies to other requests are discarded; events are kept.
    pub fn ask<T: Operation>(&mut self, request: &T) -> Reply<T> {
        let number = next_number();
        if !self.send_numbered(number, request) {
            let error = std::io::Error::last_os_error();
            return Err(Failure::Lost(format!("{} could not be sent: {error}", T::NAME)));
        }
        self.wait_for::<T>(number)
    }

    fn wait_for<T: Operation>(&mut self, number: u32) -> Reply<T> {
        loop {
            let (header, descriptors) = self.receive()?;
            if header.kind == Kind::EVENT {
                let event = codec::decode(self.body(&header)).map_err(invalid)?;
                self.events.push_back(event);
            } else if header.kind == Kind::FAULT && (header.request == number || header.request == 0) {
                return Err(Failure::Fault(codec::decode(self.body(&header)).map_err(invalid)?));
            } else if header.request == number {
                return Ok((codec::decode(self.body(&header)).map_err(invalid)?, descriptors));
            }
        }
    }

    /// The next event.
    pub fn next_event(&mut self) -> Result<Event, Failure> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let (header, _) = self.receive()?;
            if header.kind == Kind::EVENT {
                let event = codec::decode(self.body(&header)).map_err(invalid)?;
                self.events.push_back(event);
            }
        }
    }

    /// Receives frames until none arrives in time or the session ends. Returns how many.
    pub fn drain(&mut self, at_most: usize) -> usize {
        (0..at_most).take_while(|_| self.receive().is_ok()).count()
    }

    /// Requests a listener.
    pub fn listen(&mut self, request: &Listen) -> Result<(ListenerId, OwnedFd), Failure> {
        let (Listening { id }, mut descriptors) = self.ask(request)?;
        match descriptors.pop() {
            Some(socket) if descriptors.is_empty() => Ok((id, socket)),
            _ => Err(Failure::Lost("the reply to listen did not carry one descriptor".to_owned())),
        }
    }

    /// Stops one listener. An error if it is not this peer's.
    pub fn stop(&mut self, id: ListenerId) -> Result<(), Failure> {
        let (stopped, _) = self.ask(&Stop { listeners: List::truncated([id]) })?;
        match stopped.unknown.is_empty() {
            true => Ok(()),
            false => Err(Failure::Lost(format!("listener {} is unknown to the broker", id.0))),
        }
    }
}
