//! The broker's state, shared by its sessions in one thread. No borrow of it is held across an await.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use portreeve_protocol::metrics::WorkerCounts;
use portreeve_protocol::status::{Credentials, Process};
use portreeve_protocol::{Fault, List, Text, codec};

use super::counters::Counters;
use super::descriptors_in_flight::DescriptorsInFlight;
use super::quota::{Account, Accounts};
use super::reload::Reloading;
use super::session::Session;
use super::worker::WorkerControl;
use crate::address::Addresses;
use crate::config::{Bind, Quotas, Resources};
use crate::confine::broker::Verified;
use crate::confine::worker::{Restrictions, of_worker};
use crate::events::Events;
use crate::in_flight_limit::InFlightLimit;
use crate::listener::{Owner, Registry};
use crate::log::Origin;
use crate::policy::{Policy, Requester};
use crate::takeover::Export;
use crate::takeover::Fdstore;

/// The broker's release, for `Welcome`, `status` and `--version`.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// The warning in `status` while the kernel refuses to send descriptors.
const TOO_MANY_IN_FLIGHT: &str = "user 0 has too many descriptors in flight on this host (ETOOMANYREFS): replies with sockets \
    and the start of a worker wait; find the program of root that leaves descriptors unread, see unix(7)";

/// The parts of the state that start-up provides.
pub struct Parts {
    /// The policy.
    pub policy: Policy,
    /// The listeners; static ones are bound already.
    pub registry: Registry,
    /// The address manager, if the broker manages addresses.
    pub addresses: Option<Rc<Addresses>>,
    /// The events.
    pub events: Rc<Events>,
    /// The processes and what was verified about each.
    pub processes: Processes,
    /// How long listeners outlive their worker.
    pub retain: Duration,
    /// The quotas of each peer.
    pub quotas: Quotas,
    /// The broker's limit of open descriptors, which is also its limit of descriptors in flight.
    pub max_descriptors: u64,
    /// The largest number of sessions of the control socket.
    pub max_sessions: u32,
    /// What is known about the kernel's limit of descriptors in flight.
    pub in_flight_limit: Rc<InFlightLimit>,
    /// Warnings for the operator, shown by `status`.
    pub warnings: Vec<String>,
    /// The export to another broker that takes over.
    pub export: Export,
    /// The service manager's fdstore, if it has one for this service.
    pub fdstore: Option<Rc<Fdstore>>,
    /// The state of reloading.
    pub reloading: Reloading,
}

/// The processes and the credentials that the kernel reports for each.
#[derive(Debug)]
pub struct Processes {
    /// The broker itself.
    pub broker: Verified,
    /// The launcher, if a worker is configured.
    pub launcher: Option<LauncherProcess>,
    /// The reader: process id, credentials, its other locks.
    pub reader: Option<(u32, Credentials, Vec<String>)>,
}

/// The launcher.
#[derive(Debug)]
pub struct LauncherProcess {
    /// Its process id.
    pub pid: u32,
    /// Its root directory, which its workers share.
    pub root: String,
    /// Its credentials, as the kernel reports them, and its other restrictions.
    pub restrictions: Restrictions,
    /// worker.bind
    pub bind: Bind,
}

/// A session as `status` shows it.
pub struct SessionInfo {
    /// The peer, as policy knows it.
    pub requester: Requester,
    /// The name that the peer gave in hello.
    pub client: Text<64>,
    /// The peer's process id.
    pub pid: u32,
    /// The owner of its listeners.
    pub owner: Owner,
    /// The account of its peer's quotas.
    pub account: Rc<Account>,
    /// The session itself.
    pub session: Weak<Session>,
}

/// One buffer for requests and one for replies: a session uses them only while its task runs.
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
    pub(super) export: Rc<Export>,
    pub(super) fdstore: Option<Rc<Fdstore>>,
    pub(super) in_flight: DescriptorsInFlight,
    pub(super) in_flight_limit: Rc<InFlightLimit>,
    warnings: RefCell<Vec<String>>,
    left_processes: RefCell<Option<String>>,
    reader_exited: Cell<bool>,
    started: Instant,
    last_session: Cell<u64>,
    pub(super) worker: WorkerControl,
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
            accounts: Accounts::new(parts.quotas, parts.max_sessions),
            counters: Counters::default(),
            export: Rc::new(parts.export),
            fdstore: parts.fdstore,
            in_flight: DescriptorsInFlight::new(parts.max_descriptors),
            in_flight_limit: parts.in_flight_limit,
            warnings: RefCell::new(parts.warnings),
            left_processes: RefCell::default(),
            reader_exited: Cell::new(false),
            started: Instant::now(),
            last_session: Cell::new(0),
            worker: WorkerControl::default(),
        }
    }

    /// Registers a session of this peer, and returns its number and the owner of its listeners.
    pub(super) fn register(&self, requester: &Requester, pid: u32, account: &Rc<Account>) -> (u64, Owner) {
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

    /// Completes the registration of a session.
    pub(super) fn registered(&self, session: &Rc<Session>) {
        if let Some(info) = self.sessions.borrow_mut().get_mut(&session.number) {
            info.session = Rc::downgrade(session);
        }
        self.in_flight.begin(session);
    }

    /// The fault for a peer that has used up its quota of listeners.
    pub(super) fn listener_quota_fault(&self, account: &Rc<Account>) -> Option<Fault> {
        let registry = self.registry.borrow();
        let (count, capacity) = (registry.count(), registry.capacity());
        // While a peer that held all of them could have a further one, this peer can.
        account.listener_quota_fault(count, count, capacity)?;
        let sessions = self.sessions.borrow();
        let owners =
            sessions.values().filter(|info| Rc::ptr_eq(&info.account, account)).map(|info| info.owner);
        let held = owners.map(|owner| registry.count_of(owner)).sum();
        account.listener_quota_fault(held, count, capacity)
    }

    /// The oldest session without hello of the peer that has most of them. Root's are not considered.
    pub(super) fn session_without_hello(&self) -> Option<Rc<Session>> {
        let mut by_peer = BTreeMap::<Origin, (usize, Rc<Session>)>::new();
        for info in self.sessions.borrow().values() {
            let waiting =
                info.session.upgrade().filter(|session| !session.is_greeted() && !session.is_root());
            if let Some(session) = waiting.filter(|session| !session.is_worker()) {
                by_peer.entry(info.account.peer()).or_insert((0, session)).0 += 1;
            }
        }
        by_peer.into_values().max_by_key(|(count, _)| *count).map(|(_, session)| session)
    }

    /// How many sessions are open, with those that have ended and keep their place.
    pub(super) fn session_count(&self) -> usize {
        self.sessions.borrow().len() + self.in_flight.lingering()
    }

    /// The worker, if one is configured.
    pub(super) fn worker_control(&self) -> Option<&WorkerControl> {
        self.processes.launcher.as_ref().map(|_| &self.worker)
    }

    /// The user of the worker, if one is configured.
    pub(super) fn worker_uid(&self) -> Option<u32> {
        let [_, effective, ..] = self.processes.launcher.as_ref()?.restrictions.0.uid;
        Some(effective)
    }

    /// Whether any peer is permitted a resource limit.
    pub(super) fn permits_limits(&self) -> bool {
        self.policy.borrow().limited_resources() != Resources::NONE
    }

    /// Whether the worker runs and how often it was restarted, if one is configured.
    pub(super) fn worker_counts(&self) -> Option<WorkerCounts> {
        let worker = self.worker_control()?;
        Some(WorkerCounts { running: worker.pid().is_some(), restarts: worker.restarts().into() })
    }

    /// At the end of the broker: disables every listener that is not in the fdstore and removes every address, unless
    /// another broker has taken them over.
    pub(super) fn stop_everything(&self) {
        if self.export.is_committed() {
            return;
        }
        self.stop_listeners();
        self.addresses.iter().for_each(|addresses| addresses.remove_all());
    }

    fn stop_listeners(&self) {
        let is_in_fdstore = |id| self.fdstore.as_ref().is_some_and(|fdstore| fdstore.contains(id));
        for fault in self.registry.borrow_mut().stop_all_except(is_in_fdstore) {
            tracing::error!(error = %fault, "cannot revoke a listener at the end of the broker");
        }
    }

    /// The processes as `status` shows them.
    pub(super) fn process_rows(&self) -> Vec<Process> {
        let row = |role: &str, pid: u32, restarts: u32, root: &str, credentials: &Credentials| Process {
            role: Text::truncated(role),
            pid,
            restarts,
            root: Text::truncated(root),
            credentials: credentials.clone(),
            locks: List::default(),
        };
        let broker = &self.processes.broker;
        let locks = List::truncated(broker.locks.iter().map(|lock| Text::truncated(lock)));
        let mut rows =
            vec![Process { locks, ..row("broker", std::process::id(), 0, "(empty)", &broker.credentials) }];
        if let Some(LauncherProcess { pid, root, restrictions, bind }) = &self.processes.launcher {
            let mut add = |role: &str, pid, restarts, (credentials, locks): &Restrictions| {
                let locks = List::truncated(locks.iter().map(|lock| Text::truncated(lock)));
                rows.push(Process { locks, ..row(role, pid, restarts, root, credentials) });
            };
            add("launcher", *pid, 0, restrictions);
            if let Some(pid) = self.worker.pid() {
                add("worker", pid, self.worker.restarts(), &of_worker(*bind, restrictions.clone()));
            }
        }
        if let Some((pid, credentials, locks)) = &self.processes.reader
            && !self.reader_exited.get()
        {
            let locks = List::truncated(locks.iter().map(|lock| Text::truncated(lock)));
            rows.push(Process { locks, ..row("reader", *pid, 0, "/", credentials) });
        }
        rows
    }

    /// The warnings for the operator. What does not fit into the fdstore is always among them.
    pub(super) fn warnings(&self) -> List<Text<256>, 16> {
        let fdstore = self.fdstore.as_ref().and_then(|fdstore| fdstore.warning());
        let passing = self.in_flight_limit.is_lasting().then_some(TOO_MANY_IN_FLIGHT);
        let (warnings, left) = (self.warnings.borrow(), self.left_processes.borrow());
        let of_listeners = self.registry.borrow().warnings();
        let first = fdstore.iter().chain(&*left).map(String::as_str).chain(passing);
        let rest = warnings.iter().chain(&of_listeners).map(String::as_str);
        List::truncated(first.chain(rest).map(Text::truncated))
    }

    /// Records how many processes earlier workers have left, and the ids of the first ones; logs a change.
    pub(super) fn set_left_processes(&self, count: u32, pids: &[i32]) {
        self.worker.set_left(count);
        let warning = (count > 0).then(|| {
            let more = if pids.len() < count as usize {
                format!(" and more, {count} in all")
            } else {
                String::new()
            };
            let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
            format!(
                "processes that an earlier worker left still run and may hold its listeners: {}{more}",
                pids.join(" ")
            )
        });
        if *self.left_processes.borrow() == warning {
            return;
        }
        match &warning {
            Some(warning) => tracing::warn!(
                "{warning}; they end with the broker, or with their worker if end_descendants = true in the worker scope"
            ),
            None => tracing::info!("no process that an earlier worker left runs any more"),
        }
        *self.left_processes.borrow_mut() = warning;
    }

    /// The state in one line, for the service manager.
    pub(super) fn summary(&self) -> String {
        let held = self.addresses.as_ref().map_or(0, |addresses| addresses.counts().held);
        let listeners = self.registry.borrow().count();
        let mut text = format!(
            "serving {listeners} listener{}, {held} address{}",
            if listeners == 1 { "" } else { "s" },
            if held == 1 { "" } else { "es" }
        );
        if self.processes.launcher.is_some() {
            text += &match self.worker.pid() {
                Some(pid) => format!("; worker {pid} runs"),
                None => "; no worker runs".to_owned(),
            };
            text += &format!(", restarts: {}", self.worker.restarts());
        }
        text
    }

    /// The process id of the launcher, if a worker is configured.
    pub(super) fn launcher_pid(&self) -> Option<Pid> {
        let launcher = self.processes.launcher.as_ref()?;
        i32::try_from(launcher.pid).ok().map(Pid::from_raw)
    }

    /// Whether a reader process was started.
    pub(super) fn reader_was_started(&self) -> bool {
        self.processes.reader.is_some()
    }

    /// Records that the reader process has exited; the warning comes first in `status`.
    pub(super) fn reader_exited(&self, warning: &str) {
        self.reader_exited.set(true);
        self.warnings.borrow_mut().insert(0, warning.to_owned());
    }

    /// How long the broker has served.
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}
