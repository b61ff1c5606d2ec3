//! One session: from a channel to its hang-up. It takes one request at a time, answers it, and ends without
//! touching any other session whatever its peer sends.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram as StdChannel;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::channel::{self, ReceiveError, receive_bare};
use portreeve_protocol::frame::FrameError;
use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Fault, FaultCode, Header, Kind, codec};
use tokio::io::Interest;

use super::operation::{self, Received};
use super::state::{Broker, Buffers};
use crate::listener::Owner;
use crate::policy::Requester;

/// How long a peer may leave a reply unread before its session ends.
const UNREAD: Duration = Duration::from_secs(30);
/// How long to wait while too many descriptors are in flight: no event tells when that is over.
const IN_FLIGHT: Duration = Duration::from_millis(5);

/// A session as its operations see it.
pub struct Session {
    /// Its number.
    pub number: u64,
    /// Who its peer is, for policy.
    pub requester: Requester,
    /// Whose its listeners are.
    pub owner: Owner,
    greeted: std::cell::Cell<bool>,
    channel: StdChannel,
}

impl Session {
    /// Whether its peer is root, who may stop what is not its own.
    pub fn is_root(&self) -> bool {
        matches!(self.requester, Requester::Local { uid: 0, .. })
    }
}

/// What became of one packet.
pub enum Turn {
    /// It was answered.
    Answered,
    /// It was acted upon, and its answer waits until the peer reads.
    Waiting { frame: Vec<u8>, descriptors: Vec<OwnedFd> },
    /// The session is over.
    Over(String),
}

/// Opens a session as a task of its own, for the peer at the other end of the channel.
pub fn open(broker: &Rc<Broker>, channel: OwnedFd, requester: Requester, pid: u32) -> io::Result<()> {
    let channel = StdChannel::from(channel);
    channel.set_nonblocking(true)?;
    let watched = tokio::net::UnixDatagram::from_std(channel.try_clone()?)?;
    let (number, owner) = broker.enter(&requester, pid);
    let session = Session { number, requester, owner, greeted: false.into(), channel };
    let broker = broker.clone();
    tokio::task::spawn_local(async move {
        let why = session.serve(&broker, &watched).await;
        session.close(&broker, &why);
    });
    Ok(())
}

impl Session {
    async fn serve(&self, broker: &Broker, watched: &tokio::net::UnixDatagram) -> String {
        loop {
            let turn = match watched.async_io(Interest::READABLE, || self.turn(broker)).await {
                Ok(turn) => turn,
                Err(error) => Turn::Over(format!("receiving failed: {error}")),
            };
            match turn {
                Turn::Answered => {}
                Turn::Waiting { frame, descriptors } => {
                    let sending = self.send_waiting(watched, &frame, &descriptors);
                    match tokio::time::timeout(UNREAD, sending).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => return format!("sending failed: {error}"),
                        Err(_) => return format!("a reply was left unread for {} s", UNREAD.as_secs()),
                    }
                }
                Turn::Over(why) => return why,
            }
        }
    }

    /// Takes one packet, acts, answers. `WouldBlock` when there is none.
    fn turn(&self, broker: &Broker) -> io::Result<Turn> {
        let Buffers { inbox, outbox } = &mut *broker.buffers.borrow_mut();
        let length = match receive_bare(&self.channel, inbox) {
            Ok(length) => length,
            Err(ReceiveError::Os(error)) => return Err(error),
            Err(ReceiveError::Closed) => return Ok(Turn::Over("the peer hung up".to_owned())),
            Err(why) => {
                let bytes = match why {
                    ReceiveError::Surplus { bytes } => bytes,
                    _ => inbox.len(),
                };
                let request = request_number(inbox.get(..bytes).unwrap_or_default());
                return Ok(self.last_fault(
                    outbox,
                    request,
                    &Fault::new(FaultCode::Malformed, &why.to_string()),
                ));
            }
        };
        let packet = inbox.get(..length).unwrap_or_default();
        let (header, body) = match Header::decode(packet) {
            Ok((header, body)) if header.descriptors == 0 => (header, body),
            Ok((header, _)) => {
                let fault = Fault::new(
                    FaultCode::Malformed,
                    "a request carries no descriptors, and this one declares some",
                );
                return Ok(self.last_fault(outbox, header.request, &fault));
            }
            Err(error) => {
                let code = match error {
                    FrameError::Version { .. } => FaultCode::Unsupported,
                    _ => FaultCode::Malformed,
                };
                return Ok(self.last_fault(
                    outbox,
                    request_number(packet),
                    &Fault::new(code, &error.to_string()),
                ));
            }
        };
        Ok(operation::carry_out(broker, self, Received { header, body, outbox }))
    }

    /// Answers with a frame and the sockets of these listeners, or keeps it where the peer must read first.
    pub fn send(&self, broker: &Broker, frame: &[u8], listeners: &[ListenerId]) -> Turn {
        let registry = broker.registry.borrow();
        let descriptors: Option<Vec<BorrowedFd<'_>>> =
            listeners.iter().map(|id| registry.socket(*id)).collect();
        match descriptors {
            Some(descriptors) => self.send_now(frame, &descriptors),
            None => Turn::Over("a listener was gone before its socket was sent".to_owned()),
        }
    }

    fn send_now(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> Turn {
        match channel::send(&self.channel, frame, descriptors) {
            Ok(()) => Turn::Answered,
            Err(error) if channel::is_busy(&error) => {
                let copies = descriptors.iter().map(|fd| fd.try_clone_to_owned());
                match copies.collect() {
                    Ok(descriptors) => Turn::Waiting { frame: frame.to_vec(), descriptors },
                    Err(error) => Turn::Over(format!("a reply could not be kept: {error}")),
                }
            }
            Err(error) => Turn::Over(format!("sending failed: {error}")),
        }
    }

    /// Answers with a fault; the session goes on.
    pub fn refuse(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Turn {
        match codec::encode(outbox, Kind::FAULT, request, 0, fault) {
            Ok(frame) => self.send_now(frame, &[]),
            Err(error) => Turn::Over(format!("a fault could not be encoded: {error}")),
        }
    }

    /// Tells the peer why its session ends; a peer that does not read is not waited for.
    pub fn last_fault(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Turn {
        let _a_peer_that_does_not_read_misses_it = self.refuse(outbox, request, fault);
        Turn::Over(fault.message.to_string())
    }

    async fn send_waiting(
        &self,
        watched: &tokio::net::UnixDatagram,
        frame: &[u8],
        descriptors: &[OwnedFd],
    ) -> io::Result<()> {
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(|fd| fd.as_fd()).collect();
        loop {
            let send = || channel::send(&self.channel, frame, &descriptors);
            match watched.async_io(Interest::WRITABLE, send).await {
                Err(error) if channel::is_busy(&error) => tokio::time::sleep(IN_FLIGHT).await,
                other => return other,
            }
        }
    }

    /// Whether the first request was `Hello`, and it was granted.
    pub fn is_greeted(&self) -> bool {
        self.greeted.get()
    }

    /// From now on it is.
    pub fn greet(&self) {
        self.greeted.set(true);
    }

    fn close(&self, broker: &Broker, why: &str) {
        let client =
            broker.sessions.borrow_mut().remove(&self.number).map(|info| info.client).unwrap_or_default();
        tracing::info!(session = self.number, peer = %self.requester, ?client, why, "session over");
        let mut registry = broker.registry.borrow_mut();
        let faults = match self.owner {
            Owner::Worker => {
                registry.retain_until(Instant::now() + broker.retain);
                Vec::new()
            }
            owner => registry.stop_all(owner),
        };
        for fault in faults {
            tracing::error!(session = self.number, %fault, "a listener could not be stopped");
        }
    }
}

/// The request's number, as far as the packet has one.
fn request_number(packet: &[u8]) -> u32 {
    packet.get(8..12).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}
