//! Taking over, the successor's side of the channel: the running broker is met while this one is root still, asked for
//! what it holds once this one is confined, and told when it may leave.
//!
//! Promises: it is root that is asked, as the kernel says; every wait has an end; nothing that the other side sends is
//! believed before it was looked at, for it may be a broker of another release or one that was itself taken over.
//! Until [`Predecessor::confirm`] the other broker loses nothing.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::frame::HEADER_LENGTH;
use portreeve_protocol::message::{Hello, Operation};
use portreeve_protocol::takeover::{
    Begin, Confirm, Handed, HandedLease, HandedListener, More, Offer, PastEpoch, TAKEOVER_VERSION, Takeover,
};
use portreeve_protocol::{Fault, FaultCode, Header, Kind, Text, codec};
use tokio::io::Interest;

use crate::address;
use crate::failure::{Exit, Failure};
use crate::inject;
use crate::sys::BootTime;

const STEP: &str = "takeover";
/// How long an answer may take: longer than the other broker gives a takeover as a whole.
const PATIENCE: Duration = Duration::from_secs(15);
/// The pause before asking again while requests are under way there.
const AGAIN: Duration = Duration::from_millis(20);
/// How far apart two readings of one clock can be, with a message between them.
const SAME_CLOCK: Duration = Duration::from_secs(20);
/// How much longer than it said the other broker is waited for.
const GRACE: Duration = Duration::from_secs(5);

/// The running broker, and what it offers.
#[derive(Debug)]
pub struct Predecessor {
    session: Session,
    /// What it said of itself.
    pub offer: Offer,
    /// How long it takes to leave.
    leaving: Duration,
}

/// A session with it, one request at a time.
#[derive(Debug)]
struct Session {
    channel: UnixDatagram,
    buffer: Box<[u8]>,
    requests: u32,
}

/// The sockets that come with an offer.
#[derive(Debug)]
pub struct Offered {
    /// The control socket.
    pub control: OwnedFd,
    /// The service manager's.
    pub manager: Option<UnixDatagram>,
}

/// All that a broker holds.
#[derive(Debug, Default)]
pub struct Held {
    /// The listeners, by number.
    pub listeners: Vec<(HandedListener, OwnedFd)>,
    /// The leases.
    pub leases: Vec<HandedLease>,
    /// What is remembered of addresses that are gone.
    pub epochs: Vec<PastEpoch>,
}

fn failed(what: impl std::fmt::Display, remedy: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Unavailable, STEP, format_args!("{what}; the running broker serves as before"), remedy)
}

fn refused(fault: &Fault) -> Failure {
    failed(format_args!("the running broker refuses: {}", fault.message), &fault.remedy)
}

fn nonsense(what: impl std::fmt::Display) -> Failure {
    failed(format_args!("the running broker does not keep to the protocol: {what}"), "restart it instead")
}

/// Looks at an offer and at what came with it.
fn offered(offer: &Offer, descriptors: Vec<OwnedFd>) -> Result<Offered, Failure> {
    let (here, there) = (BootTime::now(), BootTime::from_nanos(offer.clock));
    if offer.version != TAKEOVER_VERSION {
        return Err(nonsense(format_args!("version {} was not asked for", offer.version)));
    }
    if here.duration_until(there).max(there.duration_until(here)) > SAME_CLOCK {
        let what = "the running broker has another CLOCK_BOOTTIME, by which leases end";
        return Err(failed(what, "start this one in the same time namespace, or restart instead"));
    }
    let mut descriptors = descriptors.into_iter();
    let control = descriptors.next().ok_or_else(|| nonsense("no control socket came"))?;
    let manager = descriptors.next().filter(|_| offer.manager).map(UnixDatagram::from);
    if descriptors.next().is_some() || manager.is_some() != offer.manager {
        return Err(nonsense("other sockets came than were said"));
    }
    Ok(Offered { control, manager })
}

impl Predecessor {
    /// Meets the broker that serves at this path and asks whether it can be taken over.
    ///
    /// # Errors
    /// There is none, it is not root's, or it will not.
    pub fn meet(path: &Path) -> Result<(Self, Offered), Failure> {
        inject::point("takeover.begin")?;
        let os = |call: &'static str| move |error: std::io::Error| Failure::os(STEP, call, error);
        let channel = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| Failure::os(STEP, "socket", errno))?;
        let channel = UnixDatagram::from(channel);
        channel.set_read_timeout(Some(PATIENCE)).map_err(os("setsockopt SO_RCVTIMEO"))?;
        channel.set_write_timeout(Some(PATIENCE)).map_err(os("setsockopt SO_SNDTIMEO"))?;
        let address = UnixAddr::new(path).map_err(|errno| Failure::os(STEP, "sun_path", errno))?;
        connect(channel.as_raw_fd(), &address).map_err(|errno| {
            let what = format!("no broker answers at {path:?}: {}", errno.desc());
            Failure::new(Exit::Unavailable, STEP, what, "start portreeved without --takeover")
        })?;
        // Of a listening socket the kernel tells who made it listen.
        let peer = getsockopt(&channel, sockopt::PeerCredentials)
            .map_err(|errno| Failure::os(STEP, "getsockopt SO_PEERCRED", errno))?;
        if peer.uid() != 0 {
            let what = format!("{path:?} is not root's: user {} listens there", peer.uid());
            return Err(Failure::new(Exit::NoPermission, STEP, what, "name the running broker's socket"));
        }
        let mut session = Session { channel, buffer: codec::frame_buffer(), requests: 0 };
        session.ask(&Hello { client: Text::clipped("portreeved --takeover"), features: 0 })?;
        let begin = Begin { oldest: TAKEOVER_VERSION, newest: TAKEOVER_VERSION };
        match session.ask(&Takeover::Begin(begin))? {
            (Handed::Offer(offer), descriptors) => {
                let offered = offered(&offer, descriptors)?;
                Ok((Self { session, offer, leaving: Duration::ZERO }, offered))
            }
            (other, _) => Err(nonsense(format_args!("it offers {other:?}"))),
        }
    }

    /// Has all that the other broker holds, which from now on waits. At most so many listeners.
    ///
    /// # Errors
    /// It does not tell, or more than can be true.
    pub fn everything(&mut self, listeners: usize) -> Result<Held, Failure> {
        inject::point("takeover.parts")?;
        let mut held = Held::default();
        loop {
            let (handed, descriptors) = self.more()?;
            match handed {
                Handed::Listeners(part) if part.listeners.len() == descriptors.len() => {
                    held.listeners.extend(part.listeners.into_vec().into_iter().zip(descriptors));
                }
                Handed::Leases(part) => held.leases.extend(part.leases.into_vec()),
                Handed::Epochs(part) => held.epochs.extend(part.epochs.into_vec()),
                Handed::Complete(_) => return Ok(held),
                other => return Err(nonsense(format_args!("{other:?} is not due"))),
            }
            if held.listeners.len() > listeners {
                let what = format!("it holds more than the {listeners} listeners that this one can");
                return Err(failed(what, "raise the limit of open files (LimitNOFILE=, ulimit -n)"));
            }
            if held.leases.len() > address::MAX_LEASES || held.epochs.len() > address::MAX_PAST_EPOCHS {
                return Err(nonsense("there is no end to its addresses"));
            }
        }
    }

    fn more(&mut self) -> Result<(Handed, Vec<OwnedFd>), Failure> {
        loop {
            match self.session.try_ask(&Takeover::More(More {}))? {
                Ok(part) => return Ok(part),
                // The other broker's own deadline ends this.
                Err(fault) if fault.code == FaultCode::Busy => std::thread::sleep(AGAIN),
                Err(fault) => return Err(refused(&fault)),
            }
        }
    }

    /// Tells the other broker that this one serves from now on.
    ///
    /// # Errors
    /// It did not hear, or did not say that it heard: then it serves as before.
    pub fn confirm(&mut self) -> Result<(), Failure> {
        inject::point("takeover.confirm")?;
        match self.session.ask(&Takeover::Confirm(Confirm {}))? {
            (Handed::Confirmed(confirmed), _) => {
                self.leaving = Duration::from_millis(confirmed.leaving_ms);
                Ok(())
            }
            (other, _) => Err(nonsense(format_args!("it confirms by {other:?}"))),
        }
    }

    /// Waits until the other broker and its worker are gone, which it says by hanging up.
    pub async fn left(self) {
        let gone = async {
            self.session.channel.set_nonblocking(true)?;
            let channel = tokio::net::UnixDatagram::from_std(self.session.channel)?;
            let receive = || match channel::receive_bare(&channel, &mut [0; HEADER_LENGTH]) {
                Err(ReceiveError::Os(error)) => Err(error),
                other => Ok(other.is_err()),
            };
            while !channel.async_io(Interest::READABLE, receive).await? {}
            Ok::<_, std::io::Error>(())
        };
        match tokio::time::timeout(self.leaving + GRACE, gone).await {
            Ok(Ok(())) => tracing::info!("the broker before has left"),
            Ok(Err(error)) => tracing::warn!(%error, "the broker before cannot be waited for"),
            Err(_) => {
                tracing::warn!("the broker before does not leave; its worker may run beside the new one")
            }
        }
    }
}

impl Session {
    fn ask<O: Operation>(&mut self, request: &O) -> Result<(O::Reply, Vec<OwnedFd>), Failure> {
        self.try_ask(request)?.map_err(|fault| refused(&fault))
    }

    fn try_ask<O: Operation>(&mut self, request: &O) -> Result<Result<Answer<O>, Fault>, Failure> {
        let gone = |what: &dyn std::fmt::Display| {
            let what = format!("the running broker cannot be asked: {what}");
            Failure::new(Exit::Unavailable, STEP, what, "see its log, and whether it runs still")
        };
        self.requests += 1;
        let frame = codec::encode(&mut self.buffer, O::KIND, self.requests, 0, request).map_err(nonsense)?;
        channel::send_bare(&self.channel, frame).map_err(|error| gone(&error))?;
        let mut descriptors = Vec::new();
        let packet = loop {
            match channel::receive(&self.channel, &mut self.buffer, &mut descriptors) {
                Ok(packet) => break packet,
                Err(ReceiveError::Os(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(ReceiveError::Os(error)) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(gone(&format_args!("no answer in {} s", PATIENCE.as_secs())));
                }
                Err(error) => return Err(gone(&error)),
            }
        };
        if packet.descriptors_lost {
            let what = "there is no room for its sockets";
            return Err(failed(what, "raise the limit of open files (LimitNOFILE=, ulimit -n)"));
        }
        let (header, body) =
            Header::decode(self.buffer.get(..packet.bytes).unwrap_or_default()).map_err(nonsense)?;
        let answers = header.request == self.requests || header.request == 0;
        match header.kind {
            Kind::FAULT if answers => Ok(Err(codec::decode(body).map_err(nonsense)?)),
            kind if header.request == self.requests && kind == O::KIND.reply() => {
                if usize::from(header.descriptors) != descriptors.len() {
                    return Err(nonsense("other sockets came than were declared"));
                }
                Ok(Ok((codec::decode(body).map_err(nonsense)?, descriptors)))
            }
            kind => Err(nonsense(format_args!("a frame of kind {kind:?} to request {}", header.request))),
        }
    }
}

type Answer<O> = (<O as Operation>::Reply, Vec<OwnedFd>);
