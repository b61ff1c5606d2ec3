//! Being replaced: who is to succeed this broker, whether the others' requests are held meanwhile, and the end.
//!
//! Promises: one successor at a time, for [`PATIENCE`] at most; nothing that it is told of changes while it is told.
//! Until it confirms, the end of its session brings everything back as it was. Afterwards this broker owns nothing:
//! it ends its sessions and leaves.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Shutdown};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use portreeve_protocol::takeover::PastEpoch;
use portreeve_protocol::{Fault, FaultCode, Kind, channel, codec};
use tokio::sync::Notify;

use super::notify::Notifier;
use super::session::Session;
use super::state::Broker;

/// How long a successor may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nobody is about to succeed.
    Alone,
    /// This session's peer is; everyone is served.
    Begun(u64),
    /// It is told what there is, and everyone else waits.
    Holding(u64),
    /// It serves, and this broker does not.
    Over(u64),
}

/// What has been told so far.
#[derive(Debug, Default)]
pub struct Cursor {
    /// The last listener's number.
    pub listener: u64,
    /// The last lease's address.
    pub lease: Option<IpAddr>,
    /// The epochs that were not told yet.
    pub epochs: Option<Vec<PastEpoch>>,
    /// There is nothing else to tell.
    pub complete: bool,
}

/// The state of a takeover. See the module.
pub struct Handover {
    phase: Cell<Phase>,
    changed: Notify,
    /// How many requests are carried out beside their sessions.
    under_way: Cell<usize>,
    /// How far the successor was told.
    pub cursor: RefCell<Cursor>,
    /// A copy of the control socket.
    pub control: Option<OwnedFd>,
    /// The service manager's.
    pub notifier: Rc<Notifier>,
    /// How long this broker and its worker may take to be gone.
    pub leaving: Duration,
}

impl Handover {
    /// Nobody is about to succeed.
    pub fn new(control: Option<OwnedFd>, notifier: Rc<Notifier>, leaving: Duration) -> Self {
        Self {
            phase: Cell::new(Phase::Alone),
            changed: Notify::new(),
            under_way: Cell::new(0),
            cursor: RefCell::default(),
            control,
            notifier,
            leaving,
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.changed.notify_waiters();
    }

    /// Notes a request that is carried out beside its session.
    pub fn begin_later(&self) {
        self.under_way.update(|count| count + 1);
    }

    /// It is over.
    pub fn end_later(&self) {
        self.under_way.update(|count| count.saturating_sub(1));
    }

    /// Whether any is under way.
    pub fn is_busy(&self) -> bool {
        self.under_way.get() > 0
    }

    /// Lets a session's peer succeed this broker, unless another is about to, and gives it so long.
    ///
    /// # Errors
    /// Busy.
    pub fn begin(self: &Rc<Self>, successor: &Rc<Session>) -> Result<(), Fault> {
        if self.phase.get() != Phase::Alone {
            return Err(Fault::new(FaultCode::Busy, "another takeover is under way")
                .remedy("wait for its end and see which broker serves"));
        }
        self.enter(Phase::Begun(successor.number));
        *self.cursor.borrow_mut() = Cursor::default();
        let (handover, successor) = (self.clone(), Rc::downgrade(successor));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(PATIENCE).await;
            if let Some(successor) = successor.upgrade()
                && handover.is_of(successor.number)
            {
                tracing::warn!(session = successor.number, "a takeover took too long and is off");
                let _hung_up_already = successor.channel.shutdown(Shutdown::Both);
            }
        });
        Ok(())
    }

    /// Holds the requests of all but the successor.
    pub fn hold(&self, successor: u64) {
        if self.phase.get() == Phase::Begun(successor) {
            self.enter(Phase::Holding(successor));
        }
    }

    /// Whether this session's peer is about to succeed.
    pub fn is_of(&self, session: u64) -> bool {
        matches!(self.phase.get(), Phase::Begun(number) | Phase::Holding(number) if number == session)
    }

    /// A session is over: if it was the successor's, so is the takeover.
    pub fn session_over(&self, session: u64) {
        if self.is_of(session) {
            tracing::warn!(session, "a takeover did not come to its end; this broker serves as before");
            self.enter(Phase::Alone);
        }
    }

    /// Whether the requests of this session, or new sessions (0), wait.
    pub fn holds(&self, session: u64) -> bool {
        matches!(self.phase.get(), Phase::Holding(number) if number != session)
    }

    /// Waits for as long as they do.
    pub async fn released(&self, session: u64) {
        loop {
            let changed = self.changed.notified();
            if !self.holds(session) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until new sessions are to wait.
    pub async fn held(&self) {
        loop {
            let changed = self.changed.notified();
            if self.holds(0) || self.is_over() {
                return;
            }
            changed.await;
        }
    }

    /// Whether another broker has taken over.
    pub fn is_over(&self) -> bool {
        matches!(self.phase.get(), Phase::Over(_))
    }

    /// Waits until another broker has.
    pub async fn over(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_over() {
                return;
            }
            changed.await;
        }
    }

    /// Whether this session has nobody left to serve it: it is neither the worker's nor the successor's.
    pub fn leaves(&self, session: &Session) -> bool {
        match self.phase.get() {
            Phase::Over(successor) => !session.is_worker() && session.number != successor,
            _ => false,
        }
    }
}

/// What a peer is told that asks this broker for something still.
pub fn taken_over() -> Fault {
    Fault::new(FaultCode::Busy, "another broker has taken over").remedy("connect again")
}

impl Broker {
    /// Lets go of everything, for the successor has confirmed: nothing that is handed over is touched any more.
    pub(super) fn leave(&self, successor: &Session) {
        self.registry.borrow_mut().let_go();
        self.addresses.iter().for_each(|addresses| addresses.drop_exported());
        self.handover.enter(Phase::Over(successor.number));
        let pid = self.sessions.borrow().get(&successor.number).map_or(0, |info| info.pid);
        self.handover.notifier.hand_over(pid);
        tracing::info!(pid, "another broker has taken over");
        let mut buffer = codec::frame_buffer();
        let frame = codec::encode(&mut buffer, Kind::FAULT, 0, 0, &taken_over());
        let sessions = self.sessions.borrow();
        let sessions = sessions.values().filter_map(|info| info.session.upgrade());
        for session in sessions.filter(|session| self.handover.leaves(session)) {
            if let Ok(frame) = &frame {
                let _who_does_not_read_misses_it = channel::send_bare(&session.channel, frame);
            }
            let _hung_up_already = session.channel.shutdown(Shutdown::Both);
        }
    }
}
