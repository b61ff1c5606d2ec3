//! One session: from a channel to its hang-up. It takes one request at a time, answers it, and ends without
//! touching any other session whatever its peer sends.

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

use super::handover::Handover;
use super::operation::{self, Received};
use super::quota::{Account, Seat};
use super::state::{Broker, Buffers};
use crate::listener::Owner;
use crate::policy::Requester;

/// How many requests of one session are taken in a row while others wait.
const IN_A_ROW: u32 = 8;

/// A session as its operations see it.
pub struct Session {
    /// Its number.
    pub number: u64,
    /// Who its peer is, for policy.
    pub requester: Requester,
    /// Whose its listeners are.
    pub owner: Owner,
    /// What its peer has used up.
    pub account: Rc<Account>,
    greeted: Cell<bool>,
    /// How long the peer waits, because of what it was refused.
    penalty: Cell<Duration>,
    in_a_row: Cell<u32>,
    /// How many requests are carried out beside the session's own task.
    pub(super) later: Cell<usize>,
    /// How many may be.
    pub(super) in_flight: usize,
    /// Whether another broker is about to take over.
    pub(super) handover: Rc<Handover>,
    /// How long a reply may be left unread.
    pub(super) unread: Duration,
    pub(super) channel: StdChannel,
    pub(super) watched: tokio::net::UnixDatagram,
}

impl Session {
    /// Whether its peer is root, who may stop what is not its own.
    pub fn is_root(&self) -> bool {
        matches!(self.requester, Requester::Local { uid: 0, .. })
    }

    /// Whether its peer is the worker.
    pub fn is_worker(&self) -> bool {
        self.owner == Owner::Worker
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
pub fn open(
    broker: &Rc<Broker>,
    channel: OwnedFd,
    requester: Requester,
    pid: u32,
    seat: Seat,
) -> io::Result<JoinHandle<()>> {
    let channel = StdChannel::from(channel);
    channel.set_nonblocking(true)?;
    let watched = tokio::net::UnixDatagram::from_std(channel.try_clone()?)?;
    let account = seat.account.clone();
    let (number, owner) = broker.enter(&requester, pid, &account);
    let session = Session {
        number,
        requester,
        owner,
        account,
        greeted: false.into(),
        penalty: seat.wait.into(),
        in_a_row: 0.into(),
        later: 0.into(),
        in_flight: usize::try_from(broker.accounts.quotas().in_flight).unwrap_or(usize::MAX),
        handover: broker.handover.clone(),
        unread: broker.accounts.quotas().unread_timeout,
        channel,
        watched,
    };
    let (broker, session) = (broker.clone(), Rc::new(session));
    broker.opened(&session);
    Ok(tokio::task::spawn_local(async move {
        let why = session.serve(&broker).await;
        session.close(&broker, &why);
        drop(seat);
    }))
}

impl Session {
    async fn serve(self: &Rc<Self>, broker: &Rc<Broker>) -> String {
        let greeting = Instant::now() + self.unread;
        loop {
            self.pause().await;
            let turn = self.watched.async_io(Interest::READABLE, || self.turn(broker));
            let turn = match self.is_greeted() || self.owner == Owner::Worker {
                true => turn.await,
                false => match tokio::time::timeout_at(greeting.into(), turn).await {
                    Ok(turn) => turn,
                    Err(_) => return format!("there was no hello in {} s", self.unread.as_secs()),
                },
            };
            let turn = match turn {
                Ok(turn) => turn,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Turn::Over(format!("receiving failed: {error}")),
            };
            match turn {
                Turn::Answered => {}
                Turn::Waiting { frame, descriptors } => {
                    if let Err(why) = self.send_in_time(&frame, &descriptors).await {
                        return why;
                    }
                }
                Turn::Over(why) => return why,
            }
        }
    }

    /// Leaves the thread to others, as long as what was refused asks for, or for a moment after so many requests.
    async fn pause(&self) {
        if self.handover.holds(self.number) {
            self.handover.released(self.number).await;
        }
        let penalty = self.penalty.take();
        if !penalty.is_zero() {
            tokio::time::sleep(penalty).await;
        } else if self.in_a_row.replace(self.in_a_row.get() + 1) >= IN_A_ROW {
            self.in_a_row.set(0);
            tokio::task::yield_now().await;
        }
    }

    /// Takes one packet, acts, answers. `WouldBlock` when there is none.
    fn turn(self: &Rc<Self>, broker: &Rc<Broker>) -> io::Result<Turn> {
        if self.handover.holds(self.number) {
            return Ok(Turn::Answered);
        }
        if self.handover.leaves(self) {
            return Ok(Turn::Over("another broker has taken over".to_owned()));
        }
        let Buffers { inbox, outbox } = &mut *broker.buffers.borrow_mut();
        let length = match receive_bytes(&self.channel, inbox) {
            Ok(length) => length,
            Err(ReceiveError::Os(error)) => {
                self.in_a_row.set(0);
                return Err(error);
            }
            Err(ReceiveError::Closed) => return Ok(Turn::Over("the peer hung up".to_owned())),
            Err(why) => {
                let bytes = match why {
                    ReceiveError::UnexpectedDescriptors { bytes } => bytes,
                    _ => inbox.len(),
                };
                let request = request_number(inbox.get(..bytes).unwrap_or_default());
                broker.counters.malformed.up();
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
                broker.counters.malformed.up();
                let fault = Fault::new(
                    FaultCode::Malformed,
                    "a request carries no descriptors, and this one declares some",
                );
                return Ok(self.last_fault(outbox, header.request, &fault));
            }
            Err(error) => {
                broker.counters.malformed.up();
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

    /// Counts refusals against the peer, which may have to wait for them before its next request is taken.
    pub fn note_refusals(&self, count: usize) {
        if count > 0 {
            self.penalty.set(self.penalty.get().max(self.account.refuse(count)));
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
        self.handover.session_over(self.number);
        // The worker's channel is held for as long as its process lives, and the worker is to see the end.
        let _hung_up_already = self.channel.shutdown(Shutdown::Both);
        let client =
            broker.sessions.borrow_mut().remove(&self.number).map(|info| info.client).unwrap_or_default();
        if self.account.may_log() {
            tracing::info!(session = self.number, peer = %self.requester, ?client, why, "session over");
        }
        broker.events.forget(self.number);
        // What is carried out still keeps the channel open, and the peer is to see that nobody reads it.
        if self.later.get() > 0 {
            let _it_is_over_already = self.channel.shutdown(Shutdown::Both);
        }
        // The worker's listeners are its process's: they stay until that is gone, and then a while for the next one.
        if self.owner == Owner::Worker {
            return;
        }
        for fault in broker.registry.borrow_mut().stop_all(self.owner) {
            tracing::error!(session = self.number, %fault, "a listener could not be stopped");
        }
    }
}

/// The request's number, as far as the packet has one.
fn request_number(packet: &[u8]) -> u32 {
    packet.get(8..12).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}
