//! The soak: mixed load on a real broker and worker for as long as it is given, with worker, launcher and broker killed
//! at random, the broker replaced and its configuration changed, and everything that must hold looked at all the time.
//!
//! What must hold:
//! - No client of the worker's ports is refused, but from the end of both broker and worker, or of a broker that ends by
//!   itself, to the moment when the next broker's worker serves. In particular not while only the worker is down, nor
//!   while a broker that was killed is down and the worker serves on what it has.
//! - Neither a takeover nor a reload refuses a client. A takeover keeps the listeners of sessions for five seconds, for the
//!   same user, with their numbers; and it keeps every lease. A reload takes nothing from anybody but what it withdraws.
//! - No client is cut off, but by the end of the worker that had accepted it.
//! - No session is cut off, but by the end of the broker. What a peer asks for is done, or refused for a reason that it knows.
//! - A listener is its owner's alone: whoever connects comes out of that owner's socket; status, the ledger of what was
//!   granted and the kernel's tables agree; once stopped it refuses.
//! - An address is there while its lease lasts, its holder alone can remove it, and no later is it let through by the packet
//!   filter (half a second) or left on its interface (3 s for IPv4, 20 s for IPv6, and only where no broker removes it).
//! - Whenever everyone has given everything back, descriptors of broker and worker, sockets, addresses, packet filter elements and
//!   processes are as before anybody came, and the broker's memory is not more than 16 MiB above its first rest.
//!
//! The choices follow from the seed; how they interleave does not.
//!
//! `cargo run --release -p portreeve-tests --bin soak -- --duration 3600` soaks for an hour.

mod actor;
mod addresses;
mod audit;
mod clients;
mod conductor;
mod configuration;
mod figures;
mod gate;
mod ledger;
mod listeners;
mod nuisance;
mod renewal;
mod session;
mod supervisor;
mod tables;
mod trouble;
mod visit;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Duration;

use actor::perform;
use audit::Auditor;
use conductor::Conductor;
pub use figures::Report;
use gate::{Gate, Phase};
use ledger::Ledger;
use supervisor::Supervisor;

use crate::random::Random;
use crate::{Host, lan};

/// The users that the peers are.
const LISTENERS: [u32; 3] = [3001, 3002, 3003];
const ADDRESSES: [u32; 2] = [3011, 3012];
const WATCHER: u32 = 3021;
const NUISANCE: u32 = 3031;
const AUDITOR: u32 = 3041;
/// How many mail clients there are.
const CLIENTS: u64 = 3;

/// How a soak goes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// For how long.
    pub duration: Duration,
    /// What chance is made of.
    pub seed: u64,
}

/// Runs a soak on this host, which is nobody else's.
pub fn run(host: &Host, settings: &Settings) -> Report {
    lan::create(&["far"]);
    let before = Outside::now();
    let (ledger, latencies) = (Ledger::default(), Mutex::default());
    let users: Vec<u32> = LISTENERS.into_iter().chain(ADDRESSES).chain([WATCHER, AUDITOR]).collect();
    let supervisor = Supervisor::start(host, &ledger, &users);
    let mut auditor = Auditor::new(&ledger, AUDITOR);
    // The measure of every later rest: nobody has come yet.
    auditor.calm(&supervisor);
    let actors = LISTENERS.len() + ADDRESSES.len() + 2 + CLIENTS as usize;
    let gate = Gate::new(actors);
    let chance = |who: u64| Random::new(settings.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (who + 1));
    let snapshots = std::thread::scope(|scope| {
        for (user, ports) in LISTENERS.into_iter().zip((10_000..).step_by(1_000)) {
            let one = listeners::Listeners::new(&ledger, chance(user.into()), user, ports);
            scope.spawn(|| perform(one, &gate, &ledger));
        }
        for (user, range) in ADDRESSES.into_iter().zip(1..) {
            let one = addresses::Addresses::new(chance(user.into()), user, range);
            scope.spawn(|| perform(one, &gate, &ledger));
        }
        for client in 0..CLIENTS {
            let one = clients::Client(chance(client));
            scope.spawn(|| perform(one, &gate, &ledger));
        }
        let one = watcher::Watcher { user: WATCHER, session: None, latencies: &latencies };
        scope.spawn(|| perform(one, &gate, &ledger));
        let one = nuisance::Nuisance { random: chance(NUISANCE.into()), user: NUISANCE };
        scope.spawn(|| perform(one, &gate, &ledger));

        let conductor = Conductor::new(&ledger, &gate, chance(0), supervisor, auditor);
        let outcome = catch_unwind(AssertUnwindSafe(|| conductor.conduct(settings.duration)));
        gate.set(Phase::Over);
        outcome.unwrap_or_else(|panic| {
            ledger.violation(actor::message(&*panic));
            Vec::new()
        })
    });
    if !ledger.violations().is_empty() {
        let log = std::fs::read_to_string(host.path(crate::broker::LOG)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(40)).for_each(|line| eprintln!("{line:.300}"));
    }
    let after = Outside::now();
    if after != before {
        ledger.violation(format_args!("after the end there is {after:?}, and before there was {before:?}"));
    }
    report(settings, &ledger, snapshots, latencies.into_inner().unwrap())
}

/// What this host has before the first broker and must have after the last.
#[derive(Debug, PartialEq, Eq)]
struct Outside {
    sockets: BTreeMap<&'static str, usize>,
    addresses: Vec<String>,
    filters: Vec<String>,
    processes: BTreeSet<u32>,
}

impl Outside {
    fn now() -> Self {
        let (sockets, addresses, processes) = (tables::sockets(), lan::addresses(), tables::processes());
        Self { sockets, addresses, filters: tables::filters(&tables::rules()), processes }
    }
}

fn report(
    settings: &Settings,
    ledger: &Ledger,
    snapshots: Vec<figures::Snapshot>,
    mut latencies: Vec<u64>,
) -> Report {
    latencies.sort_unstable();
    let at =
        |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
    Report {
        seed: settings.seed,
        seconds: ledger.age().as_secs_f64(),
        snapshots,
        counts: ledger.counts(),
        latency: [at(0.5), at(0.99), latencies.last().copied().unwrap_or_default()],
        violations: ledger.violations(),
    }
}
