//! The broker's state, shared by its sessions on one thread. No borrow of it is held across an await.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use portreeve_protocol::metrics::WorkerCounts;
use portreeve_protocol::status::{Credentials, Process};
use portreeve_protocol::{Fault, List, Text, codec};

use super::counters::Counters;
use super::handover::Handover;
use super::quota::{Account, Accounts};
use super::reload::Reloading;
use super::session::Session;
use super::store::Store;
use crate::address::Addresses;
use crate::config::Quotas;
use crate::confine::broker::Verified;
use crate::events::Events;
use crate::listener::{Owner, Registry};
use crate::policy::{Policy, Requester};

/// The broker's release, as `Welcome`, `status` and `--version` tell it.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// What the broker knows when it begins to serve.
pub struct Parts {
    /// What is permitted.
    pub policy: Policy,
    /// The static listeners, bound already.
    pub registry: Registry,
    /// The addresses, where there may be any.
    pub addresses: Option<Rc<Addresses>>,
    /// What happens, for whoever wants to know.
    pub events: Rc<Events>,
    /// What was verified of each process.
    pub processes: Processes,
    /// How long listeners outlive their worker.
    pub retain: Duration,
    /// What one peer may use up.
    pub quotas: Quotas,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// What another broker needs to take over.
    pub handover: Handover,
    /// What the service manager keeps, where it does.
    pub store: Option<Rc<Store>>,
    /// What reloading needs.
    pub reloading: Reloading,
}

/// The processes and what the kernel says they hold.
#[derive(Debug)]
pub struct Processes {
    /// The broker itself.
    pub broker: Verified,
    /// The launcher: process id, root directory, what it and every worker of it holds.
    pub launcher: Option<(u32, String, Credentials)>,
    /// The reader: process id, what it holds, its other locks.
    pub reader: Option<(u32, Credentials, Vec<String>)>,
}

/// What `status` tells of a session.
pub struct SessionInfo {
    /// Who the broker takes the peer for.
    pub requester: Requester,
    /// How the peer calls itself.
    pub client: Text<64>,
    /// The peer's process id.
    pub pid: u32,
    /// Whose its listeners are.
    pub owner: Owner,
    /// What its peer has used up.
    pub account: Rc<Account>,
    /// The session itself.
    pub session: Weak<Session>,
}

/// One buffer for what comes in and one for what goes out: a session uses them only while it has the thread.
pub struct Buffers {
    pub inbox: Box<[u8]>,
    pub outbox: Box<[u8]>,
}

/// The broker's state.
pub struct Broker {
    pub(super) policy: RefCell<Policy>,
    pub(super) registry: RefCell<Registry>,
    pub(super) buffers: RefCell<Buffers>,
    pub(super) sessions: RefCell<BTreeMap<u64, SessionInfo>>,
    pub(super) addresses: Option<Rc<Addresses>>,
    pub(super) events: Rc<Events>,
    pub(super) processes: Processes,
    pub(super) retain: Cell<Duration>,
    pub(super) reloading: Reloading,
    pub(super) accounts: Accounts,
    pub(super) counters: Counters,
    pub(super) handover: Rc<Handover>,
    pub(super) store: Option<Rc<Store>>,
    warnings: RefCell<Vec<String>>,
    reader_is_gone: Cell<bool>,
    started: Instant,
    last_session: Cell<u64>,
    worker: Cell<Option<(u32, u32)>>,
    restarts: Cell<u32>,
}

impl Broker {
    /// The state as the broker begins to serve.
    pub fn new(parts: Parts) -> Self {
        Self {
            policy: RefCell::new(parts.policy),
            registry: RefCell::new(parts.registry),
            buffers: RefCell::new(Buffers { inbox: codec::frame_buffer(), outbox: codec::frame_buffer() }),
            sessions: RefCell::default(),
            addresses: parts.addresses,
            events: parts.events,
            processes: parts.processes,
            retain: Cell::new(parts.retain),
            reloading: parts.reloading,
            accounts: Accounts::new(parts.quotas),
            counters: Counters::default(),
            handover: Rc::new(parts.handover),
            store: parts.store,
            warnings: RefCell::new(parts.warnings),
            reader_is_gone: Cell::new(false),
            started: Instant::now(),
            last_session: Cell::new(0),
            worker: Cell::new(None),
            restarts: Cell::new(0),
        }
    }

    /// Enters a session of this peer and gives its number and whose its listeners are.
    pub(super) fn enter(&self, requester: &Requester, pid: u32, account: &Rc<Account>) -> (u64, Owner) {
        let number = self.last_session.get() + 1;
        self.last_session.set(number);
        let owner = match requester {
            Requester::Worker => Owner::Worker,
            Requester::Local { .. } => Owner::Session(number),
        };
        let requester = requester.clone();
        let client = Text::default();
        let info =
            SessionInfo { requester, client, pid, owner, account: account.clone(), session: Weak::new() };
        self.sessions.borrow_mut().insert(number, info);
        self.counters.opened.up();
        (number, owner)
    }

    /// The session that was entered is there.
    pub(super) fn opened(&self, session: &Rc<Session>) {
        if let Some(info) = self.sessions.borrow_mut().get_mut(&session.number) {
            info.session = Rc::downgrade(session);
        }
    }

    /// Why the peer may not have another listener, if it may not.
    pub(super) fn listeners_used_up(&self, account: &Rc<Account>) -> Option<Fault> {
        let registry = self.registry.borrow();
        // Where all peers together hold no more than one may, none does.
        account.listeners_used_up(registry.count(), registry.capacity())?;
        let sessions = self.sessions.borrow();
        let owners =
            sessions.values().filter(|info| Rc::ptr_eq(&info.account, account)).map(|info| info.owner);
        account.listeners_used_up(owners.map(|owner| registry.count_of(owner)).sum(), registry.capacity())
    }

    /// How many sessions are open.
    pub(super) fn session_count(&self) -> usize {
        self.sessions.borrow().len()
    }

    /// The worker's process id and how often it was started again; `None` while none runs.
    pub(super) fn set_worker(&self, worker: Option<(u32, u32)>) {
        self.worker.set(worker);
        worker.into_iter().for_each(|(_, restarts)| self.restarts.set(restarts));
    }

    /// Whether the worker runs and how often it was started again, where there is one.
    pub(super) fn worker_counts(&self) -> Option<WorkerCounts> {
        self.processes.launcher.as_ref()?;
        Some(WorkerCounts { running: self.worker.get().is_some(), restarts: self.restarts.get().into() })
    }

    /// The user whose a session of the control socket is.
    pub(super) fn user(&self, session: u64) -> u32 {
        let sessions = self.sessions.borrow();
        let session = sessions.get(&session).and_then(|info| info.session.upgrade());
        match session.map(|session| session.requester.clone()) {
            Some(Requester::Local { uid, .. }) => uid,
            // None of its listeners is left once it is over.
            _ => 0,
        }
    }

    /// Takes every listener out of service but those that the service manager keeps, and gives every address back, at
    /// the end, unless all that is another broker's.
    pub(super) fn stop_everything(&self) {
        if self.handover.is_over() {
            return;
        }
        self.stop_listeners();
        self.addresses.iter().for_each(|addresses| addresses.remove_all());
    }

    fn stop_listeners(&self) {
        let kept = |id| self.store.as_ref().is_some_and(|store| store.holds(id));
        for fault in self.registry.borrow_mut().stop_everything(kept) {
            tracing::error!(%fault, "a listener could not be stopped");
        }
    }

    /// What `status` says of the processes.
    pub(super) fn process_rows(&self) -> Vec<Process> {
        let row = |role: &str, pid: u32, restarts: u32, root: &str, credentials: &Credentials| Process {
            role: Text::clipped(role),
            pid,
            restarts,
            root: Text::clipped(root),
            credentials: credentials.clone(),
            locks: List::default(),
        };
        let broker = &self.processes.broker;
        let locks = List::first_of(broker.locks.iter().map(|lock| Text::clipped(lock)));
        let mut rows =
            vec![Process { locks, ..row("broker", std::process::id(), 0, "(empty)", &broker.credentials) }];
        if let Some((pid, root, credentials)) = &self.processes.launcher {
            rows.push(row("launcher", *pid, 0, root, credentials));
            if let Some((pid, restarts)) = self.worker.get() {
                rows.push(row("worker", pid, restarts, root, credentials));
            }
        }
        if let Some((pid, credentials, locks)) = &self.processes.reader
            && !self.reader_is_gone.get()
        {
            let locks = List::first_of(locks.iter().map(|lock| Text::clipped(lock)));
            rows.push(Process { locks, ..row("reader", *pid, 0, "/", credentials) });
        }
        rows
    }

    /// What the operator should know.
    pub(super) fn warnings(&self) -> List<Text<256>, 16> {
        List::first_of(self.warnings.borrow().iter().map(|warning| Text::clipped(warning)))
    }

    /// Whether there was a process to read the configuration again.
    pub(super) fn reader_was_started(&self) -> bool {
        self.processes.reader.is_some()
    }

    /// That process is gone; the operator is to know why.
    pub(super) fn reader_is_gone(&self, why: &str) {
        self.reader_is_gone.set(true);
        // What happens now is what an operator looks for first.
        self.warnings.borrow_mut().insert(0, why.to_owned());
    }

    /// Since when the broker serves.
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}
