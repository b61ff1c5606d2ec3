//! What has to be true by what the peers were told: who holds which listener and which address until when; and what
//! was found to be otherwise.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use portreeve_protocol::message::ListenerId;

use super::trouble::Trouble;

/// How long a takeover keeps the listeners of sessions for their users' next ones: `retain` of the configuration.
pub const RETAIN: Duration = Duration::from_secs(5);
/// How much earlier or later than it should be something may be looked at.
const MARGIN: Duration = Duration::from_secs(1);
/// As many violations are told as a reader bears.
const MOST_TOLD: usize = 100;

/// A listener that a peer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number.
    pub id: ListenerId,
    /// Who holds it, as the broker calls them.
    pub owner: String,
    /// Which broker gave it.
    pub generation: u64,
}

/// What the last takeover left.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    listeners: BTreeMap<String, Held>,
    span: Option<(Instant, Option<Instant>)>,
}

impl Kept {
    /// What has to be there still, by endpoint.
    pub fn certain(&self) -> impl Iterator<Item = (&String, &Held)> {
        let lasts = self.span.is_some_and(|(begin, _)| begin.elapsed() + MARGIN < RETAIN);
        self.listeners.iter().filter(move |_| lasts)
    }

    /// Whether anything can be there still: what a session was given, or gave back, without having been told.
    pub fn is_possible(&self) -> bool {
        self.span.is_some_and(|(_, end)| end.is_none_or(|end| end.elapsed() < RETAIN + MARGIN))
    }
}

/// An address that a peer asked for.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who asked, as the broker calls them.
    pub holder: String,
    /// No later than this its lease ends; unknown while a request about it is under way.
    pub until: Option<Instant>,
    /// No earlier than this, where its lease was granted and not given back.
    pub granted: Option<Instant>,
}

/// The ledger.
pub struct Ledger {
    began: Instant,
    generation: AtomicU64,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    violations: Mutex<Vec<String>>,
    listeners: Mutex<BTreeMap<String, Held>>,
    kept: Mutex<Kept>,
    addresses: Mutex<BTreeMap<IpAddr, Known>>,
    /// The worker ends: who was being served may be cut off.
    pub worker_ends: Trouble,
    /// The broker ends: sessions do too.
    pub broker_ends: Trouble,
    /// The broker ends because another takes over.
    pub takeovers: Trouble,
    /// Worker and broker are both gone: connections are refused.
    pub closed: Trouble,
    /// One of the peers may not have what it may otherwise.
    pub narrow: Trouble,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            generation: AtomicU64::new(1),
            counts: Mutex::default(),
            violations: Mutex::default(),
            listeners: Mutex::default(),
            kept: Mutex::default(),
            addresses: Mutex::default(),
            worker_ends: Trouble::default(),
            broker_ends: Trouble::default(),
            takeovers: Trouble::default(),
            closed: Trouble::default(),
            narrow: Trouble::default(),
        }
    }
}

impl Ledger {
    /// How long it has been kept.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Notes a violation, and says it at once.
    pub fn violation(&self, what: impl std::fmt::Display) {
        let line = format!("{:.1} s: {what}", self.age().as_secs_f64());
        eprintln!("VIOLATION {line}");
        self.count("violations");
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < MOST_TOLD {
            violations.push(line);
        }
    }

    /// Counts something.
    pub fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    /// Counts so many.
    pub fn add(&self, what: &'static str, many: u64) {
        *self.counts.lock().unwrap().entry(what).or_default() += many;
    }

    /// What was counted, by name.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap().clone()
    }

    /// The violations until now.
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// Which broker it is that runs, by number.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The broker is gone and so are the listeners that it gave. Its successor removes its addresses.
    pub fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.listeners.lock().unwrap().clear();
        *self.kept.lock().unwrap() = Kept::default();
        for known in self.addresses.lock().unwrap().values_mut() {
            known.granted = None;
            known.until = Some(known.until.map_or_else(Instant::now, |until| until.min(Instant::now())));
        }
    }

    /// Another broker takes over, between these moments: what it takes over is there for a while.
    pub fn taken_over(&self, begin: Instant, end: Option<Instant>) {
        let mut kept = self.kept.lock().unwrap();
        kept.span = Some((begin, end));
        if end.is_none() {
            // Of what an earlier one left the time may be over.
            kept.listeners.clear();
        }
    }

    /// What the last takeover left.
    pub fn kept(&self) -> Kept {
        self.kept.lock().unwrap().clone()
    }

    /// What the last takeover left need not be there any longer.
    pub fn release_kept(&self) {
        self.kept.lock().unwrap().listeners.clear();
    }

    /// A peer was given a listener. Nobody else may have it, and who had it has the same as before.
    pub fn grant(&self, endpoint: &str, held: Held) {
        if held.generation != self.generation() {
            return;
        }
        let mut kept = self.kept.lock().unwrap();
        let due = kept.certain().any(|(one, _)| one == endpoint);
        match kept.listeners.remove(endpoint) {
            Some(before) if due && before == held => self.count("listeners adopted after a takeover"),
            Some(before) if due => {
                self.violation(format_args!("{endpoint} went to {held:?} while it was kept: {before:?}"));
            }
            _ => {}
        }
        drop(kept);
        match self.listeners.lock().unwrap().insert(endpoint.to_owned(), held.clone()) {
            Some(before) if before != held => {
                self.violation(format_args!("{endpoint} went to {held:?} while it was {before:?}"));
            }
            _ => {}
        }
    }

    /// A peer gives a listener back: noted before it is asked for, because then anybody may have it.
    pub fn give_back(&self, endpoint: &str, owner: &str) {
        let mut listeners = self.listeners.lock().unwrap();
        if listeners.get(endpoint).is_some_and(|held| held.owner == owner) {
            listeners.remove(endpoint);
        }
    }

    /// A peer lost its session by a takeover: what it had waits for its next one.
    pub fn keep_all(&self, owner: &str) {
        let generation = self.generation();
        let mut listeners = self.listeners.lock().unwrap();
        let (theirs, others) = std::mem::take(&mut *listeners)
            .into_iter()
            .partition(|(_, held)| held.owner == owner && held.generation == generation);
        *listeners = others;
        self.kept.lock().unwrap().listeners.append(&mut { theirs });
    }

    /// A peer hangs up: noted before it does.
    pub fn give_back_all(&self, owner: &str) {
        self.listeners.lock().unwrap().retain(|_, held| held.owner != owner);
    }

    /// The listeners that are held, by endpoint.
    pub fn listeners(&self) -> BTreeMap<String, Held> {
        self.listeners.lock().unwrap().clone()
    }

    /// The addresses, to look at and to change.
    pub fn addresses(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Known>> {
        self.addresses.lock().unwrap()
    }
}
