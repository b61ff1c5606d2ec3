//! Replies to a session's peer: sent at once, or when the peer has made room for them.
//!
//! Promises: a reply that waits holds no descriptors, only the numbers of its listeners, and delays no other session. If its
//! sockets cannot be sent in time and the peer is not the cause, the peer gets a fault instead.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Fault, FaultCode, Kind, channel, codec};
use tokio::io::Interest;

use super::session::{Session, Step};
use super::state::Broker;
use crate::in_flight_limit::Pauses;

/// How long a successor waits for the sockets of one batch: half the time of a takeover.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(5);

/// The sockets that are sent with a reply.
#[derive(Clone, Copy, Debug)]
pub enum Sockets<'a> {
    /// Those of listeners, in this order.
    Listeners(&'a [ListenerId]),
    /// The control socket, the service manager's, the map of the allowlist and the reservation, for a successor.
    Offered,
}

/// Why a reply cannot be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The peer must receive what this session has sent.
    Unread,
    /// The sessions of this peer have too many descriptors in flight.
    Peer,
    /// All users together have too many descriptors in flight.
    Users,
    /// User 0 has too many descriptors in flight on this host, as the kernel counts.
    Host,
}

/// What became of a reply.
#[derive(Debug)]
pub enum Delivery {
    /// It was sent.
    Sent,
    /// The peer got this fault instead.
    Replaced(Fault),
    /// It was not sent, for this reason; the session ends.
    Lost(String),
}

/// What has to be done when a reply was sent or cannot be sent.
pub type WhenDelivered = Box<dyn FnOnce(&Broker, &Session, &Delivery)>;

/// A reply that waits.
pub struct WaitingReply {
    request: u32,
    frame: Vec<u8>,
    /// The listeners whose sockets are sent with it; `None` stands for [`Sockets::Offered`].
    listeners: Option<Vec<ListenerId>>,
    when_delivered: Option<WhenDelivered>,
}

impl WaitingReply {
    fn new(request: u32, frame: &[u8], sockets: Sockets<'_>) -> Self {
        let listeners = match sockets {
            Sockets::Listeners(listeners) => Some(listeners.to_vec()),
            Sockets::Offered => None,
        };
        Self { request, frame: frame.to_vec(), listeners, when_delivered: None }
    }

    /// Sets what has to be done when it was sent or cannot be sent.
    pub fn when_delivered(self, action: WhenDelivered) -> Self {
        Self { when_delivered: Some(action), ..self }
    }

    /// Its frame.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    fn sockets(&self) -> Sockets<'_> {
        self.listeners.as_deref().map_or(Sockets::Offered, Sockets::Listeners)
    }
}

/// Why a frame was not sent.
enum Unsent {
    /// It can be sent later.
    Blocked(Blocked),
    /// A listener was stopped before its socket was sent.
    Stopped,
    Failed(io::Error),
}

impl From<io::Error> for Unsent {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Unsent::Blocked(Blocked::Unread),
            _ => Unsent::Failed(error),
        }
    }
}

impl Session {
    /// Sends a reply with its sockets, or keeps it if the peer must read first.
    pub fn send(&self, broker: &Broker, request: u32, frame: &[u8], sockets: Sockets<'_>) -> Step {
        match self.try_send(broker, frame, sockets) {
            Ok(()) => Step::Continue,
            Err(Unsent::Blocked(_)) => Step::Wait(Box::new(WaitingReply::new(request, frame, sockets))),
            Err(Unsent::Stopped) => {
                Step::Close("a listener was closed before its socket was sent".to_owned())
            }
            Err(Unsent::Failed(error)) => Step::Close(format!("cannot send a reply: {error}")),
        }
    }

    /// Sends a frame without sockets, or keeps it if the peer must read first.
    pub(super) fn send_frame(&self, frame: &[u8]) -> Step {
        match channel::send_bytes(&self.channel, frame) {
            Ok(()) => Step::Continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Step::Wait(Box::new(WaitingReply::new(0, frame, Sockets::Listeners(&[]))))
            }
            Err(error) => Step::Close(format!("cannot send a reply: {error}")),
        }
    }

    fn try_send(&self, broker: &Broker, frame: &[u8], sockets: Sockets<'_>) -> Result<(), Unsent> {
        let registry = broker.registry.borrow();
        let descriptors: Vec<BorrowedFd<'_>> = match sockets {
            Sockets::Listeners([]) => return Ok(channel::send_bytes(&self.channel, frame)?),
            Sockets::Listeners(listeners) => {
                let sockets: Option<_> = listeners.iter().map(|id| registry.socket(*id)).collect();
                sockets.ok_or(Unsent::Stopped)?
            }
            Sockets::Offered => {
                let control = broker.export.control.iter().map(|socket| socket.as_fd());
                let addresses = broker.addresses.as_ref();
                let reservation =
                    addresses.and_then(|addresses| addresses.reservation()).map(|one| one.as_fd());
                let others = broker.export.notifier.socket().into_iter().chain(registry.allowlist());
                control.chain(others).chain(reservation).collect()
            }
        };
        broker.in_flight.admit(self, descriptors.len()).map_err(Unsent::Blocked)?;
        let (sent, count) = (channel::send(&self.channel, frame, &descriptors), descriptors.len());
        drop(descriptors);
        drop(registry);
        match sent {
            Ok(()) => {
                broker.in_flight.add(self, count);
                broker.in_flight_limit.sent();
                if let Sockets::Listeners(listeners) = sockets {
                    broker.registry.borrow_mut().release(listeners);
                }
                Ok(())
            }
            Err(error) if channel::exceeds_in_flight_limit(&error) => {
                broker.in_flight_limit.refused();
                Err(Unsent::Blocked(Blocked::Host))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Replies with a fault that does not count as a refusal.
    pub fn send_fault(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Step {
        match codec::encode(outbox, Kind::FAULT, request, 0, fault) {
            Ok(frame) => self.send_frame(frame),
            Err(error) => Step::Close(format!("cannot encode a fault: {error}")),
        }
    }

    /// Replies with a fault; the session continues.
    pub fn refuse(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Step {
        self.note_refusals(1);
        self.send_fault(outbox, request, fault)
    }

    /// Replies with a fault and closes the session. Does not wait for a peer that does not read the reply.
    pub fn close_with(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Step {
        let _ = self.refuse(outbox, request, fault); // the session ends in any case
        Step::Close(fault.message.to_string())
    }

    /// Replies with a fault; closes the session if its peer has not sent hello.
    pub fn refuse_or_close(&self, outbox: &mut [u8], request: u32, fault: &Fault) -> Step {
        match self.is_greeted() {
            true => self.refuse(outbox, request, fault),
            false => self.close_with(outbox, request, fault),
        }
    }

    /// Sends a reply that has to wait. Meanwhile the session sends no events, so that a peer that reads everything is seen
    /// to have done so.
    ///
    /// # Errors
    /// The reason for which the session ends.
    pub(super) async fn deliver(&self, broker: &Broker, mut reply: WaitingReply) -> Result<(), String> {
        let when_delivered = reply.when_delivered.take();
        self.reply_waits.set(true);
        let delivery = self.send_or_replace(broker, &reply).await;
        self.reply_waits.set(false);
        self.reply_sent.notify_waiters();
        if let Some(action) = when_delivered {
            action(broker, self, &delivery);
        }
        match delivery {
            Delivery::Lost(reason) => Err(reason),
            // The batches of a takeover cannot be requested again.
            Delivery::Replaced(fault) if self.is_successor() => Err(fault.message.to_string()),
            Delivery::Sent | Delivery::Replaced(_) => Ok(()),
        }
    }

    /// Waits while a reply waits.
    pub(super) async fn await_reply(&self) {
        loop {
            let sent = self.reply_sent.notified();
            if !self.reply_waits.get() {
                return;
            }
            sent.await;
        }
    }

    async fn send_or_replace(&self, broker: &Broker, reply: &WaitingReply) -> Delivery {
        let time_limit = match self.is_successor() {
            true => self.unread_timeout.min(SUCCESSOR_TIMEOUT),
            false => self.unread_timeout,
        };
        let blocked = Cell::new(Blocked::Unread);
        let send = || self.try_send(broker, &reply.frame, reply.sockets());
        let fault = match tokio::time::timeout(time_limit, self.retry(&blocked, send)).await {
            Ok(Ok(())) => return Delivery::Sent,
            Ok(Err(Unsent::Stopped)) => stopped(),
            Ok(Err(Unsent::Failed(error))) => return Delivery::Lost(format!("cannot send a reply: {error}")),
            Ok(Err(Unsent::Blocked(cause))) => self.too_many_in_flight(cause),
            Err(_) if blocked.get() == Blocked::Unread => return Delivery::Lost(self.unread()),
            Err(_) => self.too_many_in_flight(blocked.get()),
        };
        let mut buffer = codec::frame_buffer();
        let sent = match codec::encode(&mut buffer, Kind::FAULT, reply.request, 0, &fault) {
            Ok(frame) => self.send_in_time(frame).await,
            Err(error) => Err(format!("cannot encode a fault: {error}")),
        };
        sent.map_or_else(Delivery::Lost, |()| Delivery::Replaced(fault))
    }

    /// Sends a frame without sockets, and waits up to `unread_timeout` for the peer to make room.
    ///
    /// # Errors
    /// The reason for which the session ends.
    pub(super) async fn send_in_time(&self, frame: &[u8]) -> Result<(), String> {
        match tokio::time::timeout(self.unread_timeout, self.send_waiting(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("cannot send a reply: {error}")),
            Err(_) => Err(self.unread()),
        }
    }

    /// Sends a frame without sockets, however long the peer takes to make room.
    pub(super) async fn send_waiting(&self, frame: &[u8]) -> io::Result<()> {
        let send = || channel::send_bytes(&self.channel, frame);
        self.async_channel.async_io(Interest::WRITABLE, send).await
    }

    /// Tries to send until that succeeds or fails for good. `blocked` is what currently prevents it.
    async fn retry(
        &self,
        blocked: &Cell<Blocked>,
        mut send: impl FnMut() -> Result<(), Unsent>,
    ) -> Result<(), Unsent> {
        let mut pauses = Pauses::default();
        loop {
            // The kernel also reports this each time the peer has received a packet.
            let ready = self.async_channel.ready(Interest::WRITABLE).await.map_err(Unsent::Failed)?;
            if ready.is_write_closed() {
                return Err(Unsent::Failed(Errno::EPIPE.into()));
            }
            let attempt = self.async_channel.try_io(Interest::WRITABLE, || match send() {
                Err(Unsent::Blocked(Blocked::Unread)) => Err(io::ErrorKind::WouldBlock.into()),
                result => Ok(result),
            });
            match attempt {
                Err(_) => blocked.set(Blocked::Unread),
                Ok(Err(Unsent::Blocked(cause))) => {
                    if blocked.replace(cause) == Blocked::Unread {
                        self.account.count_delay();
                    }
                    pauses.next().await;
                }
                Ok(result) => return result,
            }
        }
    }

    fn unread(&self) -> String {
        format!("the peer did not read a reply for {} s", self.unread_timeout.as_secs())
    }

    /// The fault in place of a reply whose sockets could not be sent.
    fn too_many_in_flight(&self, cause: Blocked) -> Fault {
        let (what, remedy) = match cause {
            Blocked::Unread | Blocked::Peer => (
                format!("other sessions of {} have left too many sockets unread", self.requester),
                "read their replies or close their channels",
            ),
            Blocked::Users => (
                "the users of this broker have left too many sockets unread".to_owned(),
                "request fewer listeners at once",
            ),
            Blocked::Host => (
                "user 0 has too many descriptors in flight on this host (ETOOMANYREFS)".to_owned(),
                "find the program of root that leaves descriptors unread, see unix(7)",
            ),
        };
        // A successor repeats a request that is refused as busy, but it cannot get the same batch again.
        let (code, which) = match self.is_successor() {
            true => (FaultCode::Os, "the sockets"),
            false => (FaultCode::Busy, "the listeners are open, but their sockets"),
        };
        let fault = Fault::new(code, &format!("{which} cannot be sent: {what}"));
        let fault = if cause == Blocked::Host { fault.errno(Errno::ETOOMANYREFS as i32) } else { fault };
        fault.remedy(&format!("{remedy}; then repeat the request"))
    }

    /// Ends the session from outside its task.
    pub(super) fn hang_up(&self) {
        let _ = self.channel.shutdown(Shutdown::Both); // it fails only if the peer has hung up
    }
}

fn stopped() -> Fault {
    let message = "a listener was stopped before its socket was sent";
    Fault::new(FaultCode::NotFound, message).remedy("request the listeners again")
}
