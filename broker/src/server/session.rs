//! One session: from the connection of a channel to its end. It serves one request after the other. Whatever its peer
//! sends affects no other session.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdChannel;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::channel::{ReceiveError, receive_bytes};
use portreeve_protocol::frame::FrameError;
use portreeve_protocol::{Fault, FaultCode, Header};
use tokio::io::Interest;
use tokio::task::JoinHandle;

use super::operation::{self, Received};
use super::quota::{Account, SessionSlot};
use super::state::{Broker, Buffers};
use crate::listener::Owner;
use crate::policy::Requester;
use crate::takeover::Export;

/// The largest number of requests of one session that are served in a row while other sessions wait.
const MAX_IN_A_ROW: u32 = 8;

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
    /// How long the peer's next request waits, because of the ones that were refused.
    penalty: Cell<Duration>,
    in_a_row: Cell<u32>,
    /// The number of requests in flight.
    pub(super) in_flight: Cell<usize>,
    pub(super) max_in_flight: usize,
    /// The state of a takeover by another broker.
    pub(super) export: Rc<Export>,
    /// How long the peer may leave a reply unread.
    pub(super) unread_timeout: Duration,
    pub(super) channel: StdChannel,
    pub(super) async_channel: tokio::net::UnixDatagram,
}

impl Session {
    /// Whether its peer is user 0, which is allowed to stop the listeners of other peers.
    pub fn is_root(&self) -> bool {
        matches!(self.requester, Requester::Local { uid: 0, .. })
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
    Wait { frame: Vec<u8>, descriptors: Vec<OwnedFd> },
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
    let session = Session {
        number,
        requester,
        owner,
        account,
        greeted: false.into(),
        penalty: slot.wait.into(),
        in_a_row: 0.into(),
        in_flight: 0.into(),
        max_in_flight: usize::try_from(broker.accounts.quotas().in_flight).unwrap_or(usize::MAX),
        export: broker.export.clone(),
        unread_timeout: broker.accounts.quotas().unread_timeout,
        channel,
        async_channel,
    };
    let (broker, session) = (broker.clone(), Rc::new(session));
    broker.registered(&session);
    Ok(tokio::task::spawn_local(async move {
        let reason = session.serve(&broker).await;
        session.close(&broker, &reason);
        drop(slot);
    }))
}

impl Session {
    async fn serve(self: &Rc<Self>, broker: &Rc<Broker>) -> String {
        let greeting = Instant::now() + self.unread_timeout;
        loop {
            self.pause().await;
            let step = self.async_channel.async_io(Interest::READABLE, || self.step(broker));
            let step = match self.is_greeted() || self.owner == Owner::Worker {
                true => step.await,
                false => match tokio::time::timeout_at(greeting.into(), step).await {
                    Ok(step) => step,
                    Err(_) => {
                        return format!("the peer sent no hello for {} s", self.unread_timeout.as_secs());
                    }
                },
            };
            let step = match step {
                Ok(step) => step,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Step::Close(format!("cannot receive: {error}")),
            };
            match step {
                Step::Continue => {}
                Step::Wait { frame, descriptors } => {
                    if let Err(reason) = self.send_in_time(&frame, &descriptors).await {
                        return reason;
                    }
                }
                Step::Close(reason) => return reason,
            }
        }
    }

    /// Waits as long as the refused requests demand, or yields to other sessions after several requests in a row.
    async fn pause(&self) {
        if self.export.pauses(self.number) {
            self.export.resumed(self.number).await;
        }
        let penalty = self.penalty.take();
        if !penalty.is_zero() {
            tokio::time::sleep(penalty).await;
        } else if self.in_a_row.replace(self.in_a_row.get() + 1) >= MAX_IN_A_ROW {
            self.in_a_row.set(0);
            tokio::task::yield_now().await;
        }
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
        let length = match receive_bytes(&self.channel, inbox) {
            Ok(length) => length,
            Err(ReceiveError::Os(error)) => {
                self.in_a_row.set(0);
                return Err(error);
            }
            Err(ReceiveError::Closed) => return Ok(Step::Close("the peer closed the channel".to_owned())),
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
    pub fn greet(&self) {
        self.greeted.set(true);
    }

    fn close(&self, broker: &Broker, reason: &str) {
        self.export.session_ended(self.number);
        // Another part of the broker keeps the worker's channel open; the worker must see that the session has ended.
        let _ = self.channel.shutdown(Shutdown::Both); // the peer may have closed it already
        let client =
            broker.sessions.borrow_mut().remove(&self.number).map(|info| info.client).unwrap_or_default();
        if self.account.may_log() {
            tracing::info!(session = self.number, peer = %self.requester, ?client, reason, "session ended");
        }
        broker.events.unsubscribe(self.number);
        // The worker's listeners belong to its process: they stay until it has exited, and are then retained for the next
        // worker.
        if self.owner == Owner::Worker {
            return;
        }
        for fault in broker.registry.borrow_mut().stop_owned_by(self.owner) {
            tracing::error!(session = self.number, %fault, "cannot stop a listener of a session that ended");
        }
    }
}

/// The request's number, if the packet is long enough to have one.
fn request_number(packet: &[u8]) -> u32 {
    packet.get(8..12).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}
