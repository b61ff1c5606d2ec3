//! The predecessor's side of a takeover: which session is the successor's, whether other requests wait, what was exported
//! so far, and the commit.
//!
//! Promises: there is one successor at a time, for [`EXPORT_TIMEOUT`] at most; nothing changes while it is exported. Until
//! the successor commits, the end of its session restores normal service. After that this broker owns nothing: it ends its
//! sessions and exits.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use portreeve_protocol::frame::MAX_DESCRIPTORS;
use portreeve_protocol::message::ListenerId;
use portreeve_protocol::takeover::{
    EpochBatch, ExportComplete, ExportedEpoch, LeaseBatch, ListenerBatch, MAX_EPOCH_BATCH, MAX_LEASE_BATCH,
    TakeoverReply,
};
use portreeve_protocol::{Fault, FaultCode, List};
use tokio::sync::Notify;

use crate::address::Addresses;
use crate::listener::Registry;
use crate::sd_notify::Notifier;

/// How long a successor may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no takeover.
    Idle,
    /// The peer of this session began one; every peer is served.
    Begun(u64),
    /// The state is exported to this session; the requests of all others wait.
    Exporting(u64),
    /// The successor behind this session serves, and this broker does not.
    Committed(u64),
}

/// A part of the state, and the listeners whose sockets are sent with it.
pub type Batch = (TakeoverReply, Vec<ListenerId>);

/// What was exported so far.
#[derive(Debug, Default)]
struct Cursor {
    /// The number of the last listener.
    listener: u64,
    /// The address of the last lease.
    lease: Option<IpAddr>,
    /// The epochs that were not exported yet.
    epochs: Option<std::vec::IntoIter<ExportedEpoch>>,
    /// Everything was exported.
    complete: bool,
}

/// The state of a takeover in the predecessor.
pub struct Export {
    phase: Cell<Phase>,
    changed: Notify,
    /// The number of requests in flight.
    in_flight: Cell<usize>,
    cursor: RefCell<Cursor>,
    /// A copy of the control socket.
    pub control: Option<OwnedFd>,
    /// The service manager.
    pub notifier: Rc<Notifier>,
    /// How long this broker and its worker may take to exit after the commit.
    pub exit_time: Duration,
}

impl Export {
    /// No takeover yet.
    pub fn new(control: Option<OwnedFd>, notifier: Rc<Notifier>, exit_time: Duration) -> Self {
        Self {
            phase: Cell::new(Phase::Idle),
            changed: Notify::new(),
            in_flight: Cell::new(0),
            cursor: RefCell::default(),
            control,
            notifier,
            exit_time,
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.changed.notify_waiters();
    }

    /// Counts a request that is in flight from now on.
    pub fn request_started(&self) {
        self.in_flight.update(|count| count + 1);
    }

    /// Counts the end of such a request.
    pub fn request_ended(&self) {
        self.in_flight.update(|count| count.saturating_sub(1));
    }

    /// Whether requests are in flight.
    pub fn has_requests_in_flight(&self) -> bool {
        self.in_flight.get() > 0
    }

    /// Begins a takeover by the peer of this session. `abort` runs if it is not committed within [`EXPORT_TIMEOUT`].
    ///
    /// # Errors
    /// Busy while there is another takeover.
    pub fn begin(self: &Rc<Self>, successor: u64, abort: impl FnOnce() + 'static) -> Result<(), Fault> {
        if self.phase.get() != Phase::Idle {
            return Err(Fault::new(FaultCode::Busy, "another takeover is in progress")
                .remedy("wait until it ends, then check which broker serves"));
        }
        self.enter(Phase::Begun(successor));
        *self.cursor.borrow_mut() = Cursor::default();
        let export = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(EXPORT_TIMEOUT).await;
            if export.is_successor(successor) {
                let seconds = EXPORT_TIMEOUT.as_secs();
                tracing::warn!(session = successor, seconds, "a takeover was aborted: it took too long");
                abort();
            }
        });
        Ok(())
    }

    /// Makes the requests of all other sessions wait.
    pub fn pause_others(&self, successor: u64) {
        if self.phase.get() == Phase::Begun(successor) {
            self.enter(Phase::Exporting(successor));
        }
    }

    /// Whether the peer of this session has begun a takeover that is not committed.
    pub fn is_successor(&self, session: u64) -> bool {
        matches!(self.phase.get(), Phase::Begun(number) | Phase::Exporting(number) if number == session)
    }

    /// Handles the end of a session: returns whether it was the successor's, so that the takeover has failed.
    pub fn session_ended(&self, session: u64) -> bool {
        let failed = self.is_successor(session);
        if failed {
            tracing::warn!(session, "a takeover ended before its commit; this broker still serves");
            self.enter(Phase::Idle);
        }
        failed
    }

    /// Whether the requests of this session wait; 0 stands for new sessions and for the broker itself.
    pub fn pauses(&self, session: u64) -> bool {
        matches!(self.phase.get(), Phase::Exporting(number) if number != session)
    }

    /// Waits while [`Export::pauses`] holds for this session.
    pub async fn resumed(&self, session: u64) {
        self.wait_until(|| !self.pauses(session)).await;
    }

    /// Waits until new sessions have to wait, or this broker no longer serves.
    pub async fn paused_or_committed(&self) {
        self.wait_until(|| self.pauses(0) || self.is_committed()).await;
    }

    /// Whether the successor has committed.
    pub fn is_committed(&self) -> bool {
        matches!(self.phase.get(), Phase::Committed(_))
    }

    /// Waits until the successor has committed.
    pub async fn committed(&self) {
        self.wait_until(|| self.is_committed()).await;
    }

    async fn wait_until(&self, condition: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            if condition() {
                return;
            }
            changed.await;
        }
    }

    /// Whether this session has to end: the successor has committed, and the session is neither its own nor the worker's.
    pub fn must_close(&self, session: u64, is_worker: bool) -> bool {
        match self.phase.get() {
            Phase::Committed(successor) => !is_worker && session != successor,
            _ => false,
        }
    }

    /// Whether everything was exported.
    pub fn is_complete(&self) -> bool {
        self.cursor.borrow().complete
    }

    /// The next batch, in this order: listeners, leases, epochs, end.
    pub fn next_batch(&self, registry: &Registry, addresses: Option<&Addresses>) -> Batch {
        let mut cursor = self.cursor.borrow_mut();
        let listeners = registry.export(ListenerId(cursor.listener), MAX_DESCRIPTORS);
        if let Some(last) = listeners.last() {
            cursor.listener = last.id.0;
            let ids = listeners.iter().map(|listener| listener.id).collect();
            return (TakeoverReply::Listeners(ListenerBatch { listeners: List::truncated(listeners) }), ids);
        }
        if let Some(addresses) = addresses {
            let leases = addresses.export_leases(cursor.lease, MAX_LEASE_BATCH);
            if let Some(last) = leases.last() {
                cursor.lease = Some(last.address);
                return (TakeoverReply::Leases(LeaseBatch { leases: List::truncated(leases) }), Vec::new());
            }
            let epochs = cursor.epochs.get_or_insert_with(|| addresses.export_epochs().into_iter());
            let batch: Vec<ExportedEpoch> = epochs.take(MAX_EPOCH_BATCH).collect();
            if !batch.is_empty() {
                return (TakeoverReply::Epochs(EpochBatch { epochs: List::truncated(batch) }), Vec::new());
            }
        }
        cursor.complete = true;
        (TakeoverReply::ExportComplete(ExportComplete {}), Vec::new())
    }

    /// Ends service after the successor's commit: reports the successor's process to the service manager as the main process.
    pub fn commit(&self, successor: u64, pid: u32) {
        self.enter(Phase::Committed(successor));
        self.notifier.set_main_process(pid);
        tracing::info!(pid, "another broker has taken over");
    }
}

/// The fault of a request that reaches this broker after the commit.
pub fn taken_over() -> Fault {
    Fault::new(FaultCode::Busy, "another broker has taken over").remedy("connect again")
}
