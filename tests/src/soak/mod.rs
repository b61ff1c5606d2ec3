//! Soak test: mixed load on a real broker and worker for a given time. Meanwhile the worker, the launcher and the broker
//! are killed at random, the broker is replaced, its configuration changes, and the invariants below are checked.
//!
//! Invariants:
//! - A client of the worker's ports is refused only after both the broker and the worker have ended, or after a broker
//!   has ended by itself, until the next broker's worker serves. A client is not refused while only the worker is down,
//!   nor after a broker was killed while its worker continues to serve.
//! - Neither a takeover nor a reload refuses a client. A takeover retains the listeners of sessions for five seconds, for
//!   the same user and with the same ids, and keeps every lease. A reload closes only what it withdraws.
//! - A client is disconnected only if the worker that accepted it ends.
//! - A session ends only if the broker ends. A request succeeds or is refused with a fault that the peer can expect.
//! - A listener belongs to its owner only: connections arrive at the owner's socket; the broker's status, the model and
//!   the kernel's tables agree; a stopped listener refuses connections.
//! - An address exists while its lease lasts, and only its holder can remove it. After the lease, the packet filter admits
//!   it for at most half a second, and it stays on its interface for at most 3 s (IPv4) or 20 s (IPv6), and that long only
//!   if no broker removes it.
//! - Hostile peers, each with a random trick of [`crate::adversary`] at a time, change none of this, and notice no harm.
//! - After all peers have released everything, the descriptors of the broker and the worker, the sockets, the addresses,
//!   the packet filter's elements and the processes are as before the first peer connected, and the broker's memory is at
//!   most 16 MiB above that of its first idle audit.
//!
//! The seed determines the random choices, but not how the threads interleave.
//!
//! `cargo run --release -p portreeve-tests --bin soak -- --duration 3600` runs for an hour.

mod actor;
mod address_peer;
mod audit;
mod configuration;
mod connectivity;
mod disruption;
mod hostile_peer;
mod kernel_state;
mod latency_probe;
mod listener_peer;
mod mail_clients;
mod model;
mod phase_barrier;
mod report;
mod scheduler;
mod session;
mod supervisor;
mod takeover_and_reload;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Duration;

use actor::run_actor;
use audit::Auditor;
use model::Model;
use phase_barrier::{Phase, PhaseBarrier};
pub use report::Report;
use scheduler::Scheduler;
use supervisor::Supervisor;

use crate::random::Random;
use crate::{Host, lan};

/// The user ids of the peers.
const LISTENERS: [u32; 3] = [3001, 3002, 3003];
const ADDRESSES: [u32; 2] = [3011, 3012];
const PROBE: u32 = 3021;
const AUDITOR: u32 = 3041;
/// The number of mail clients.
const CLIENTS: u64 = 3;

/// The settings of a soak test.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long it runs.
    pub duration: Duration,
    /// The seed of the random choices.
    pub seed: u64,
}

/// Runs a soak test. No other test may use the host.
pub fn run(host: &Host, settings: &Settings) -> Report {
    lan::create(&["far"]);
    let before = Outside::now();
    let (model, latencies) = (Model::default(), Mutex::default());
    let users: Vec<u32> = LISTENERS.into_iter().chain(ADDRESSES).chain([PROBE, AUDITOR]).collect();
    let supervisor = Supervisor::start(host, &model, &users);
    let mut auditor = Auditor::new(&model, AUDITOR);
    // No peer has connected yet: this is the baseline of every later idle audit.
    auditor.audit_idle(&supervisor);
    let actors = LISTENERS.len() + ADDRESSES.len() + 1 + CLIENTS as usize + hostile_peer::HOSTILE as usize;
    let barrier = PhaseBarrier::new(actors);
    let chance = |who: u64| Random::new(settings.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (who + 1));
    let snapshots = std::thread::scope(|scope| {
        for (user, ports) in LISTENERS.into_iter().zip((10_000..).step_by(1_000)) {
            let one = listener_peer::ListenerPeer::new(&model, chance(user.into()), user, ports);
            scope.spawn(|| run_actor(one, &barrier, &model));
        }
        for (user, range) in ADDRESSES.into_iter().zip(1..) {
            let one = address_peer::AddressPeer::new(chance(user.into()), user, range);
            scope.spawn(|| run_actor(one, &barrier, &model));
        }
        for client in 0..CLIENTS {
            let one = mail_clients::MailClient(chance(client));
            scope.spawn(|| run_actor(one, &barrier, &model));
        }
        let one = latency_probe::LatencyProbe { user: PROBE, session: None, latencies: &latencies };
        scope.spawn(|| run_actor(one, &barrier, &model));
        for number in 0..hostile_peer::HOSTILE {
            let one = hostile_peer::HostilePeer::new(host, chance(u64::from(number) + 3_031), number);
            scope.spawn(|| run_actor(one, &barrier, &model));
        }

        let scheduler = Scheduler::new(&model, &barrier, chance(0), supervisor, auditor);
        let outcome = catch_unwind(AssertUnwindSafe(|| scheduler.run(settings.duration)));
        barrier.set(Phase::Finished);
        outcome.unwrap_or_else(|panic| {
            model.violation(actor::message(&*panic));
            Vec::new()
        })
    });
    if !model.violations().is_empty() {
        let log = std::fs::read_to_string(host.path(crate::broker::LOG)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(40)).for_each(|line| eprintln!("{line:.300}"));
    }
    let after = Outside::now();
    if after != before {
        model.violation(format_args!("the host is {after:?} after the test and was {before:?} before it"));
    }
    report(settings, &model, snapshots, latencies.into_inner().unwrap())
}

/// The host's state before the first broker, which must be the same after the last.
#[derive(Debug, PartialEq, Eq)]
struct Outside {
    sockets: BTreeMap<&'static str, usize>,
    addresses: Vec<String>,
    filters: Vec<String>,
    processes: BTreeSet<u32>,
}

impl Outside {
    fn now() -> Self {
        let (sockets, addresses, processes) =
            (kernel_state::sockets(), lan::addresses(), kernel_state::processes());
        Self { sockets, addresses, filters: kernel_state::filters(&kernel_state::rules()), processes }
    }
}

fn report(
    settings: &Settings,
    model: &Model,
    snapshots: Vec<report::Snapshot>,
    mut latencies: Vec<u64>,
) -> Report {
    latencies.sort_unstable();
    let at =
        |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
    Report {
        seed: settings.seed,
        seconds: model.age().as_secs_f64(),
        snapshots,
        counts: model.counts(),
        latency: [at(0.5), at(0.99), latencies.last().copied().unwrap_or_default()],
        violations: model.violations(),
    }
}
