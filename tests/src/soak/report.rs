//! The report of a soak test: measurements at each idle audit, counters and violations.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::kernel_state::Memory;

/// Measurements at an idle audit.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Seconds since the start of the test.
    pub at: f64,
    /// The broker's process id.
    pub broker: u32,
    /// The numbers of descriptors of the broker and of the worker.
    pub descriptors: [usize; 2],
    /// The broker's memory.
    pub memory: Memory,
    /// Sockets by kind.
    pub sockets: BTreeMap<&'static str, usize>,
    /// Addresses other than the host's own.
    pub addresses: usize,
    /// Elements of the packet filter's sets.
    pub elements: usize,
    /// Processes.
    pub processes: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed of the random choices.
    pub seed: u64,
    /// The duration in seconds.
    pub seconds: f64,
    /// A snapshot of each idle audit.
    pub snapshots: Vec<Snapshot>,
    /// The counters.
    pub counts: BTreeMap<&'static str, u64>,
    /// The round-trip times of a well-behaved peer's pings, in microseconds: median, 99th percentile, maximum.
    pub latency: [u64; 3],
    /// The violations.
    pub violations: Vec<String>,
}

type Row = (&'static str, fn(&Snapshot) -> u64);

const ROWS: [Row; 9] = [
    ("broker's descriptors", |one| one.descriptors[0] as u64),
    ("worker's descriptors", |one| one.descriptors[1] as u64),
    ("broker's Rss, kB", |one| one.memory.resident),
    ("broker's Pss, kB", |one| one.memory.share),
    ("TCP sockets", |one| (one.sockets["tcp"] + one.sockets["tcp6"]) as u64),
    ("all sockets", |one| one.sockets.values().sum::<usize>() as u64),
    ("addresses", |one| one.addresses as u64),
    ("nft elements", |one| one.elements as u64),
    ("processes", |one| one.processes as u64),
];

impl Report {
    /// The first and the last snapshot of the broker that has most of them.
    fn longest_life(&self) -> Option<(&Snapshot, &Snapshot)> {
        let lives = self.snapshots.chunk_by(|one, next| one.broker == next.broker);
        let longest = lives.max_by_key(|life| life.len())?;
        Some((longest.first()?, longest.last()?))
    }

    /// Prints it as a table.
    pub fn print(&self) {
        println!("\nseed {}, {:.0} s, {} idle audits", self.seed, self.seconds, self.snapshots.len());
        let (Some(first), Some(last)) = (self.snapshots.first(), self.snapshots.last()) else { return };
        let Some((from, to)) = self.longest_life() else { return };
        println!("\nwhile idle {:>21} {:>10} {:>24}", "first", "last", "longest-lived broker");
        for (name, value) in ROWS {
            let [first, last, from, to] = [first, last, from, to].map(value);
            println!("{name:<22} {first:>9} {last:>10} {:>24}", format!("{from} → {to}"));
        }
        println!(
            "{:<22} {:>9.0} {:>10.0} {:>24}",
            "after s",
            first.at,
            last.at,
            format!("{:.0} → {:.0}", from.at, to.at)
        );
        println!("\ncounts");
        self.counts.iter().for_each(|(name, count)| println!("{name:<42} {count:>10}"));
        let [median, p99, max] = self.latency;
        println!(
            "\npings of a well-behaved peer: median {median} µs, 99th percentile {p99} µs, maximum {max} µs"
        );
        println!("\n{} violations", self.violations.len());
        self.violations.iter().for_each(|line| println!("  {line}"));
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let snapshot = |one: &Snapshot| {
            let rows = ROWS.iter().map(|(name, value)| ((*name).to_owned(), json!(value(one))));
            let at = [("at".to_owned(), json!(one.at)), ("broker".to_owned(), json!(one.broker))];
            Value::Object(at.into_iter().chain(rows).collect())
        };
        json!({
            "seed": self.seed,
            "seconds": self.seconds,
            "idle_audits": self.snapshots.iter().map(snapshot).collect::<Vec<_>>(),
            "counts": self.counts,
            "ping_us": { "median": self.latency[0], "p99": self.latency[1], "max": self.latency[2] },
            "violations": self.violations,
        })
    }
}
