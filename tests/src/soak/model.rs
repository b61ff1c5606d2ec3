//! The model: the state that the broker must have according to the replies that peers received, namely who holds which
//! listener, and who holds which address until when. It also collects the violations.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use portreeve_protocol::message::ListenerId;

use super::disruption::Disruption;

/// How long a takeover retains the listeners of sessions for later sessions of the same users: option `retain`.
pub const RETAIN: Duration = Duration::from_secs(5);
/// By how much a check may be early or late.
const MARGIN: Duration = Duration::from_secs(1);
/// How many violations are reported.
const MAX_REPORTED: usize = 100;

/// A listener that a peer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its id.
    pub id: ListenerId,
    /// The holder's name in the broker's replies.
    pub owner: String,
    /// The generation of the broker that opened it.
    pub generation: u64,
}

/// The listeners that the last takeover retained.
#[derive(Clone, Debug, Default)]
pub struct Retained {
    listeners: BTreeMap<String, Held>,
    span: Option<(Instant, Option<Instant>)>,
}

impl Retained {
    /// The listeners that must still exist, by endpoint.
    pub fn required(&self) -> impl Iterator<Item = (&String, &Held)> {
        let lasts = self.span.is_some_and(|(begin, _)| begin.elapsed() + MARGIN < RETAIN);
        self.listeners.iter().filter(move |_| lasts)
    }

    /// Whether retained listeners may still exist. They include listeners of which the reply or the stop was lost with the
    /// session.
    pub fn may_exist(&self) -> bool {
        self.span.is_some_and(|(_, end)| end.is_none_or(|end| end.elapsed() < RETAIN + MARGIN))
    }
}

/// An address that a peer requested.
#[derive(Clone, Debug)]
pub struct AddressRecord {
    /// The peer's name in the broker's replies.
    pub holder: String,
    /// The latest time at which its lease can end; unknown while a request about it is in flight.
    pub latest_end: Option<Instant>,
    /// The earliest time at which its lease can end, if it was granted and not released.
    pub earliest_end: Option<Instant>,
}

/// See the module.
pub struct Model {
    began: Instant,
    generation: AtomicU64,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    violations: Mutex<Vec<String>>,
    listeners: Mutex<BTreeMap<String, Held>>,
    retained: Mutex<Retained>,
    addresses: Mutex<BTreeMap<IpAddr, AddressRecord>>,
    /// The worker is ending: clients that it serves may be disconnected.
    pub worker_down: Disruption,
    /// The broker is ending, and its sessions with it.
    pub broker_down: Disruption,
    /// The broker ends because another takes over.
    pub takeovers: Disruption,
    /// The worker and the broker have both ended: connections are refused.
    pub service_down: Disruption,
    /// The configuration denies one of the peers what it is otherwise allowed.
    pub restricted: Disruption,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            generation: AtomicU64::new(1),
            counts: Mutex::default(),
            violations: Mutex::default(),
            listeners: Mutex::default(),
            retained: Mutex::default(),
            addresses: Mutex::default(),
            worker_down: Disruption::default(),
            broker_down: Disruption::default(),
            takeovers: Disruption::default(),
            service_down: Disruption::default(),
            restricted: Disruption::default(),
        }
    }
}

impl Model {
    /// The time since the start of the test.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Records a violation and prints it.
    pub fn violation(&self, what: impl std::fmt::Display) {
        let line = format!("{:.1} s: {what}", self.age().as_secs_f64());
        eprintln!("VIOLATION {line}");
        self.count("violations");
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < MAX_REPORTED {
            violations.push(line);
        }
    }

    /// Adds one to a counter.
    pub fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    /// Adds `many` to a counter.
    pub fn add(&self, what: &'static str, many: u64) {
        *self.counts.lock().unwrap().entry(what).or_default() += many;
    }

    /// The counters, by name.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap().clone()
    }

    /// The violations so far.
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// The number of the running broker.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Records that the broker and its listeners have ended. The next broker removes its addresses.
    pub fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.listeners.lock().unwrap().clear();
        *self.retained.lock().unwrap() = Retained::default();
        for known in self.addresses.lock().unwrap().values_mut() {
            known.earliest_end = None;
            known.latest_end =
                Some(known.latest_end.map_or_else(Instant::now, |until| until.min(Instant::now())));
        }
    }

    /// Records a takeover between two moments: the successor retains what it took over for [`RETAIN`].
    pub fn record_takeover(&self, begin: Instant, end: Option<Instant>) {
        let mut retained = self.retained.lock().unwrap();
        retained.span = Some((begin, end));
        if end.is_none() {
            // The time of listeners from an earlier takeover may have ended.
            retained.listeners.clear();
        }
    }

    /// The listeners that the last takeover retained.
    pub fn retained(&self) -> Retained {
        self.retained.lock().unwrap().clone()
    }

    /// The retained listeners need not exist any longer.
    pub fn clear_retained(&self) {
        self.retained.lock().unwrap().listeners.clear();
    }

    /// Records that a peer was given a listener. No other peer may hold it, and its holder must get the same id again.
    pub fn grant(&self, endpoint: &str, held: Held) {
        if held.generation != self.generation() {
            return;
        }
        let mut retained = self.retained.lock().unwrap();
        let due = retained.required().any(|(one, _)| one == endpoint);
        match retained.listeners.remove(endpoint) {
            Some(before) if due && before == held => self.count("listeners adopted after a takeover"),
            Some(before) if due => {
                self.violation(format_args!("{endpoint} was given to {held:?} while retained as {before:?}"));
            }
            _ => {}
        }
        drop(retained);
        match self.listeners.lock().unwrap().insert(endpoint.to_owned(), held.clone()) {
            Some(before) if before != held => {
                self.violation(format_args!("{endpoint} was given to {held:?} while held as {before:?}"));
            }
            _ => {}
        }
    }

    /// Records that a peer is about to stop a listener. Called before the request, because others may have it afterwards.
    pub fn release(&self, endpoint: &str, owner: &str) {
        let mut listeners = self.listeners.lock().unwrap();
        if listeners.get(endpoint).is_some_and(|held| held.owner == owner) {
            listeners.remove(endpoint);
        }
    }

    /// Records that a takeover ended a peer's session: its listeners are retained for its next session.
    pub fn retain_all(&self, owner: &str) {
        let generation = self.generation();
        let mut listeners = self.listeners.lock().unwrap();
        let (theirs, others) = std::mem::take(&mut *listeners)
            .into_iter()
            .partition(|(_, held)| held.owner == owner && held.generation == generation);
        *listeners = others;
        self.retained.lock().unwrap().listeners.append(&mut { theirs });
    }

    /// Records that a peer is about to disconnect.
    pub fn release_all(&self, owner: &str) {
        self.listeners.lock().unwrap().retain(|_, held| held.owner != owner);
    }

    /// The listeners that are held, by endpoint.
    pub fn listeners(&self) -> BTreeMap<String, Held> {
        self.listeners.lock().unwrap().clone()
    }

    /// The addresses, for reading and changing.
    pub fn addresses(&self) -> MutexGuard<'_, BTreeMap<IpAddr, AddressRecord>> {
        self.addresses.lock().unwrap()
    }
}
