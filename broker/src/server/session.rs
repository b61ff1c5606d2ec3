//! One session: from the connection of a channel to its end. It serves one request after the other. Whatever its peer
//! sends affects no other session.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdChannel;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::channel::{ReceiveError, receive_bytes};
use portreeve_protocol::frame::FrameError;
use portreeve_protocol::message::Features;
use portreeve_protocol::{Fault, FaultCode, Header};
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::operation::{self, Received};
use super::quota::{Account, SessionSlot};
use super::reply::WaitingReply;
use super::state::{Broker, Buffers};
use crate::listener::Owner;
use crate::log;
use crate::policy::Requester;
use crate::sys::sender::{self, Sender};
use crate::takeover::Export;

/// The largest number of requests of one peer that are served in a row while other peers wait.
const MAX_IN_A_ROW: u32 = 8;
/// How long they may take: no further request begins after this time.
const MAX_TURN: Duration = Duration::from_millis(1);
/// How long a peer of the control socket may take to send hello, if `unread_timeout` is not shorter.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason for the end of a session that ends as expected.
const CLOSED_BY_PEER: &str = "the peer closed the channel";

/// A session as its operations see it.
pub struct Session {
    /// Its number.
    pub number: u64,
    /// Its peer, as policy knows it.
    pub requester: Requester,
    /// The owner of its listeners.
    pub owner: Owner,
    /// The account of its peer's quotas.
    pub account: Rc<Account>,
    greeted: Cell<bool>,
    features: Cell<u64>,
    /// How long the peer's next request waits, because of the ones that were refused.
    penalty: Cell<Duration>,
    /// Notified to end a session without hello, in favour of another peer.
    evicted: Notify,
    /// The number of requests in flight.
    pub(super) in_flight: Cell<usize>,
    /// How many descriptors were sent since the peer was last known to have received all.
    pub(super) descriptors_in_flight: Cell<usize>,
    /// Whether a reply waits until the peer makes room.
    pub(super) reply_waits: Cell<bool>,
    /// Notified when a reply no longer waits.
    pub(super) reply_sent: Notify,
    /// The state of a takeover by another broker.
    pub(super) export: Rc<Export>,
    /// How long the peer may leave a reply unread.
    pub(super) unread_timeout: Duration,
    /// Whether the kernel attaches to each message which process sent it.
    identifies_senders: bool,
    /// Who sent the message that is being served.
    sender: RefCell<Option<Sender>>,
    pub(super) channel: StdChannel,
    pub(super) async_channel: tokio::net::UnixDatagram,
}

impl Session {
    /// Whether its peer is user 0, which is allowed to stop the listeners of other peers.
    pub fn is_root(&self) -> bool {
        matches!(self.requester, Requester::Local { uid: 0, .. })
    }

    /// Whether its peer is another broker that is taking over.
    pub(super) fn is_successor(&self) -> bool {
        self.export.is_successor(self.number)
    }

    /// Whether its peer is the worker.
    pub fn is_worker(&self) -> bool {
        self.owner == Owner::Worker
    }
}

/// What a session does next.
pub enum Step {
    /// Take the next packet.
    Continue,
    /// Wait until the peer has made room for this reply.
    Wait(Box<WaitingReply>),
    /// Close, for this reason.
    Close(String),
}

/// Opens a session as a task of its own, for the peer at the other end of the channel.
pub fn open(
    broker: &Rc<Broker>,
    channel: OwnedFd,
    requester: Requester,
    pid: u32,
    slot: SessionSlot,
) -> io::Result<JoinHandle<()>> {
    let channel = StdChannel::from(channel);
    channel.set_nonblocking(true)?;
    let async_channel = tokio::net::UnixDatagram::from_std(channel.try_clone()?)?;
    let account = slot.account.clone();
    let (number, owner) = broker.register(&requester, pid, &account);
    // An older kernel does not know it; a request for a limit then gets a fault.
    let identifies_senders =
        owner == Owner::Worker && broker.permits_limits() && sender::identify(&channel).is_ok();
    let session = Session {
        number,
        requester,
        owner,
        account,
        greeted: false.into(),
        features: 0.into(),
        penalty: slot.wait.into(),
        evicted: Notify::new(),
        in_flight: 0.into(),
        descriptors_in_flight: 0.into(),
        reply_waits: false.into(),
        reply_sent: Notify::new(),
        export: broker.export.clone(),
        unread_timeout: broker.accounts.quotas().unread_timeout,
        identifies_senders,
        sender: RefCell::default(),
        channel,
        async_channel,
    };
    let (broker, session) = (broker.clone(), Rc::new(session));
    broker.registered(&session);
    Ok(tokio::task::spawn_local(async move {
        let reason = tokio::select! {
            // First, so that a hello is not served and then the session ended.
            biased;
            () = session.evicted.notified() => "it sent no hello, and another peer needs the session".to_owned(),
            reason = session.serve(&broker) => reason,
        };
        session.close(&broker, &reason);
        broker.release(session, slot);
    }))
}

impl Session {
    async fn serve(self: &Rc<Self>, broker: &Rc<Broker>) -> String {
        self.serve_penalty().await;
        let limit = self.unread_timeout.min(HELLO_TIMEOUT);
        let greeting = Instant::now() + limit;
        loop {
            if self.export.pauses(self.number) {
                self.export.resumed(self.number).await;
            }
            self.serve_penalty().await;
            let readable = self.async_channel.readable();
            let readable = match self.is_greeted() || self.owner == Owner::Worker {
                true => readable.await,
                false => match tokio::time::timeout_at(greeting.into(), readable).await {
                    Ok(readable) => readable,
                    Err(_) => return format!("the peer sent no hello for {} s", limit.as_secs()),
                },
            };
            if let Err(error) = readable {
                return format!("cannot receive: {error}");
            }
            let step = {
                let _turn = self.account.turn().await;
                let step = self.serve_turn(broker);
                if matches!(step, Some(Step::Continue)) || self.account.has_waiting_sessions() {
                    // The peer keeps its turn meanwhile: others are served before its next session.
                    tokio::task::yield_now().await;
                }
                step
            };
            match step {
                None | Some(Step::Continue) => {}
                Some(Step::Wait(reply)) => {
                    if let Err(reason) = self.deliver(broker, *reply).await {
                        return reason;
                    }
                }
                Some(Step::Close(reason)) => return reason,
            }
        }
    }

    /// Waits as long as the refused requests, or the new sessions, of the peer demand.
    async fn serve_penalty(&self) {
        let penalty = self.penalty.take();
        if !penalty.is_zero() {
            tokio::time::sleep(penalty).await;
        }
    }

    /// Serves the requests that have arrived, while it is this peer's turn. `None` if all are served.
    fn serve_turn(self: &Rc<Self>, broker: &Rc<Broker>) -> Option<Step> {
        let end = Instant::now() + MAX_TURN;
        for _ in 0..MAX_IN_A_ROW {
            match self.async_channel.try_io(Interest::READABLE, || self.step(broker)) {
                Ok(Step::Continue) => {}
                Ok(step) => return Some(step),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(Step::Close(format!("cannot receive: {error}"))),
            }
            let must_wait = self.account.request() || !self.penalty.get().is_zero();
            if must_wait || self.export.pauses(self.number) || Instant::now() >= end {
                break;
            }
        }
        Some(Step::Continue)
    }

    /// Receives one packet, acts, replies. `WouldBlock` if there is none.
    fn step(self: &Rc<Self>, broker: &Rc<Broker>) -> io::Result<Step> {
        if self.export.pauses(self.number) {
            return Ok(Step::Continue);
        }
        if self.must_close() {
            return Ok(Step::Close("another broker has taken over".to_owned()));
        }
        let Buffers { inbox, outbox } = &mut *broker.buffers.borrow_mut();
        let length = match self.receive(inbox) {
            Ok(length) => length,
            Err(ReceiveError::Os(error)) => return Err(error),
            Err(ReceiveError::Closed) => return Ok(Step::Close(CLOSED_BY_PEER.to_owned())),
            Err(error) => {
                let bytes = match error {
                    ReceiveError::UnexpectedDescriptors { bytes } => bytes,
                    _ => inbox.len(),
                };
                let request = request_number(inbox.get(..bytes).unwrap_or_default());
                broker.counters.malformed.up();
                return Ok(self.close_with(
                    outbox,
                    request,
                    &Fault::new(FaultCode::Malformed, &error.to_string()),
                ));
            }
        };
        let packet = inbox.get(..length).unwrap_or_default();
        let (header, body) = match Header::decode(packet) {
            Ok((header, body)) if header.descriptors == 0 => (header, body),
            Ok((header, _)) => {
                broker.counters.malformed.up();
                let fault =
                    Fault::new(FaultCode::Malformed, "the request declares descriptors; requests carry none");
                return Ok(self.close_with(outbox, header.request, &fault));
            }
            Err(error) => {
                broker.counters.malformed.up();
                let code = match error {
                    FrameError::Version { .. } => FaultCode::Unsupported,
                    _ => FaultCode::Malformed,
                };
                return Ok(self.close_with(
                    outbox,
                    request_number(packet),
                    &Fault::new(code, &error.to_string()),
                ));
            }
        };
        Ok(operation::dispatch(broker, self, Received { header, body, outbox }))
    }

    fn receive(&self, inbox: &mut [u8]) -> Result<usize, ReceiveError> {
        if !self.identifies_senders {
            return receive_bytes(&self.channel, inbox);
        }
        let (length, sender) = sender::receive(&self.channel, inbox)?;
        self.sender.replace(sender);
        Ok(length)
    }

    /// The process that sent the message that is being served, if the kernel tells.
    pub fn take_sender(&self) -> Option<Sender> {
        self.sender.take()
    }

    /// Counts refused requests of the peer; its next request may have to wait because of them.
    pub fn note_refusals(&self, count: usize) {
        if count > 0 {
            self.penalty.set(self.penalty.get().max(self.account.refuse(count)));
        }
    }

    /// Whether the peer has sent hello and was admitted.
    pub fn is_greeted(&self) -> bool {
        self.greeted.get()
    }

    /// Records that the peer has sent hello and is admitted.
    pub fn greet(&self, features: u64) {
        self.greeted.set(true);
        self.features.set(features & (Features::LEASE_TIMES | Features::LISTEN_MODE));
    }

    /// The optional features that both sides support.
    pub fn features(&self) -> u64 {
        self.features.get()
    }

    /// Whether both sides support a feature.
    pub fn has_feature(&self, feature: u64) -> bool {
        self.features.get() & feature != 0
    }

    /// Ends the session, which has no hello, in favour of another peer.
    pub fn evict(&self) {
        self.evicted.notify_one();
    }

    fn close(&self, broker: &Broker, reason: &str) {
        if self.export.session_ended(self.number) {
            // The successor may have listed sockets of its own in the allowlist.
            broker.registry.borrow().revoke_others();
        }
        // Another part of the broker keeps the worker's channel open; the worker must see that the session has ended.
        let _ = self.channel.shutdown(Shutdown::Both); // the peer may have closed it already
        let client =
            broker.sessions.borrow_mut().remove(&self.number).map(|info| info.client).unwrap_or_default();
        let (session, peer) = (self.number, log::named(self.holder()));
        match reason == CLOSED_BY_PEER {
            false => self.account.notice(|| tracing::info!(session, %peer, %client, reason, "session ended")),
            true if log::shows_debug() => {
                self.account.notice(|| tracing::debug!(session, %peer, %client, reason, "session ended"));
            }
            true => {}
        }
        broker.events.unsubscribe(self.number);
        // The worker's listeners belong to its process: they stay until it has exited, and are then retained for the next
        // worker.
        if self.owner == Owner::Worker {
            return;
        }
        for fault in broker.registry.borrow_mut().stop_owned_by(self.owner) {
            log::record(self.account.peer(), || {
                tracing::error!(session = self.number, error = %fault, "cannot revoke a listener of a session that ended");
            });
        }
    }
}

/// The request's number, if the packet is long enough to have one.
fn request_number(packet: &[u8]) -> u32 {
    packet.get(8..12).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}
