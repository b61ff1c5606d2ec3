//! The predecessor as its successor sees it: connected while the successor is still root, read once the successor is
//! confined, and released once the successor has committed.
//!
//! Promises: the kernel confirms that root runs the predecessor; every wait has a limit; nothing that it sends is trusted
//! before it is checked, because it may be of another release or compromised. Until [`Predecessor::commit`] the predecessor
//! loses nothing.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::frame::HEADER_LENGTH;
use portreeve_protocol::message::Hello;
use portreeve_protocol::takeover::{
    Accepted, Begin, Commit, ExportedEpoch, ExportedLease, ExportedListener, NextBatch, TAKEOVER_VERSION,
    Takeover, TakeoverReply,
};
use portreeve_protocol::{FaultCode, Text};
use tokio::io::Interest;

use super::request::{Reply, Session, failed, protocol_error, refused};
use super::supervisor::refuse_supervised;
use crate::address;
use crate::failure::Failure;
use crate::inject;
use crate::sys::BootTime;

/// The pause before the next attempt while the predecessor has requests in flight.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// The largest difference between two readings of one clock with a message between them.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(20);
/// How much longer than announced the predecessor may take to exit.
const EXIT_MARGIN: Duration = Duration::from_secs(5);

/// The running broker, and what it offers.
#[derive(Debug)]
pub struct Predecessor {
    session: Session,
    /// Its offer.
    pub offer: Accepted,
    /// How long it may take to exit, once committed.
    exit_time: Duration,
}

/// The sockets that come with an offer.
#[derive(Debug)]
pub struct OfferedSockets {
    /// The control socket.
    pub control: OwnedFd,
    /// The connected socket of the service manager.
    pub manager: Option<UnixDatagram>,
    /// The map of the allowlist.
    pub allowlist: Option<OwnedFd>,
    /// The socket of the reservation of the addresses of the network namespace.
    pub reservation: Option<OwnedFd>,
}

/// Everything that a predecessor exports.
#[derive(Debug, Default)]
pub(super) struct ExportedState {
    /// The listeners with their sockets, in the order of their numbers.
    pub listeners: Vec<(ExportedListener, OwnedFd)>,
    /// The leases.
    pub leases: Vec<ExportedLease>,
    /// The epochs of removed addresses.
    pub epochs: Vec<ExportedEpoch>,
}

fn check_offer(offer: &Accepted, descriptors: Vec<OwnedFd>) -> Result<OfferedSockets, Failure> {
    let (our_time, their_time) = (BootTime::now(), BootTime::from_nanos(offer.boottime_ns));
    if offer.version != TAKEOVER_VERSION {
        return Err(protocol_error(format_args!(
            "it chose version {}, which was not offered",
            offer.version
        )));
    }
    if our_time.duration_until(their_time).max(their_time.duration_until(our_time)) > MAX_CLOCK_DIFFERENCE {
        return Err(failed(
            "the running broker has another CLOCK_BOOTTIME, and leases expire by that clock",
            "start this broker in the time namespace of the running one, or restart instead of taking over",
        ));
    }
    let mut descriptors = descriptors.into_iter();
    let control = descriptors.next().ok_or_else(|| protocol_error("it sent no control socket"))?;
    let mut offered = |is_offered: bool| if is_offered { descriptors.next() } else { None };
    let (manager, allowlist) = (offered(offer.manager).map(UnixDatagram::from), offered(offer.allowlist));
    let reservation = offered(offer.reservation);
    let is_complete = manager.is_some() == offer.manager
        && allowlist.is_some() == offer.allowlist
        && reservation.is_some() == offer.reservation;
    if descriptors.next().is_some() || !is_complete {
        return Err(protocol_error("it sent other sockets than its offer says"));
    }
    Ok(OfferedSockets { control, manager, allowlist, reservation })
}

impl Predecessor {
    /// Connects to the broker that serves at this path, and begins a takeover.
    ///
    /// # Errors
    /// No broker serves there, its process is not run by root, another program supervises it unless `force`, or it
    /// refuses.
    pub fn connect(path: &Path, force: bool) -> Result<(Self, OfferedSockets), Failure> {
        inject::point("takeover.begin")?;
        let mut session = Session::connect(path)?;
        let hello = Hello { client: Text::truncated("portreeved --takeover"), features: 0 };
        let (welcome, _) = session.request_from_root(&hello)?;
        if !force {
            refuse_supervised(welcome.broker)?;
        }
        let begin = Begin { oldest: TAKEOVER_VERSION, newest: TAKEOVER_VERSION };
        match session.request(&Takeover::Begin(begin))? {
            (TakeoverReply::Accepted(offer), descriptors) => {
                let sockets = check_offer(&offer, descriptors)?;
                Ok((Self { session, offer, exit_time: Duration::ZERO }, sockets))
            }
            (other, _) => Err(protocol_error(format_args!("unexpected reply to begin: {other:?}"))),
        }
    }

    /// Reads everything that the predecessor exports, at most `max_listeners` listeners. From now on the predecessor
    /// delays the requests of its peers.
    ///
    /// # Errors
    /// The predecessor does not reply, or exports more than is possible.
    pub(super) fn read_all(&mut self, max_listeners: usize) -> Result<ExportedState, Failure> {
        inject::point("takeover.export")?;
        let mut state = ExportedState::default();
        loop {
            let (batch, descriptors) = self.next_batch()?;
            match batch {
                TakeoverReply::Listeners(batch) if batch.listeners.len() == descriptors.len() => {
                    state.listeners.extend(batch.listeners.into_vec().into_iter().zip(descriptors));
                }
                TakeoverReply::Leases(batch) => state.leases.extend(batch.leases.into_vec()),
                TakeoverReply::Epochs(batch) => state.epochs.extend(batch.epochs.into_vec()),
                TakeoverReply::ExportComplete(_) => return Ok(state),
                other => return Err(protocol_error(format_args!("unexpected batch: {other:?}"))),
            }
            if state.listeners.len() > max_listeners {
                let what =
                    format!("it has more than the {max_listeners} listeners that this broker can hold");
                return Err(failed(what, "raise the limit of open files (LimitNOFILE=, ulimit -n)"));
            }
            if state.leases.len() > address::MAX_LEASES || state.epochs.len() > address::MAX_PAST_EPOCHS {
                return Err(protocol_error("it exports more addresses than a broker can have"));
            }
        }
    }

    fn next_batch(&mut self) -> Result<Reply<Takeover>, Failure> {
        loop {
            match self.session.try_request(&Takeover::NextBatch(NextBatch {}))? {
                Ok(batch) => return Ok(batch),
                // The predecessor's own time limit ends this loop.
                Err(fault) if fault.code == FaultCode::Busy => std::thread::sleep(RETRY_PAUSE),
                Err(fault) => return Err(refused(&fault)),
            }
        }
    }

    /// Commits the takeover: this broker serves from now on. A predecessor that dies before its reply serves no more, and this
    /// broker has everything by now.
    ///
    /// # Errors
    /// The predecessor did not acknowledge; it still serves.
    pub(super) fn commit(&mut self) -> Result<(), Failure> {
        inject::point("takeover.commit")?;
        match self.session.request(&Takeover::Commit(Commit {})) {
            Ok((TakeoverReply::Committed(committed), _)) => {
                self.exit_time = Duration::from_millis(committed.exit_ms);
                Ok(())
            }
            Ok((other, _)) => Err(protocol_error(format_args!("unexpected reply to commit: {other:?}"))),
            Err(failure) if self.session.peer_has_died() => {
                tracing::warn!(error = %failure, "the predecessor has died after it exported everything: this broker serves");
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Waits until the predecessor and its worker have exited: the session ends then.
    pub async fn exited(self) {
        let hang_up = async {
            self.session.channel.set_nonblocking(true)?;
            let channel = tokio::net::UnixDatagram::from_std(self.session.channel)?;
            let receive = || match channel::receive_bytes(&channel, &mut [0; HEADER_LENGTH]) {
                Err(ReceiveError::Os(error)) => Err(error),
                other => Ok(other.is_err()),
            };
            while !channel.async_io(Interest::READABLE, receive).await? {}
            Ok::<_, std::io::Error>(())
        };
        match tokio::time::timeout(self.exit_time + EXIT_MARGIN, hang_up).await {
            Ok(Ok(())) => tracing::info!("the predecessor has exited"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot wait for the predecessor to exit"),
            Err(_) => tracing::warn!(
                "the predecessor does not exit in time; its worker may run beside the new one until it does"
            ),
        }
    }
}
