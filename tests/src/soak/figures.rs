//! What a soak comes to: its figures before and after, its counts, its violations.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::tables::Memory;

/// What was there at one moment, while nobody asked for anything.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Seconds since the beginning.
    pub at: f64,
    /// Which broker it was: its process.
    pub broker: u32,
    /// How many descriptors broker and worker had.
    pub descriptors: [usize; 2],
    /// The broker's memory.
    pub memory: Memory,
    /// Sockets by kind.
    pub sockets: BTreeMap<&'static str, usize>,
    /// Addresses that are not the host's own.
    pub addresses: usize,
    /// Elements of the packet filter's sets.
    pub elements: usize,
    /// Processes.
    pub processes: usize,
}

/// The whole.
#[derive(Clone, Debug)]
pub struct Report {
    /// What chance was made of.
    pub seed: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Every quiet moment.
    pub snapshots: Vec<Snapshot>,
    /// What was counted.
    pub counts: BTreeMap<&'static str, u64>,
    /// How long the pings of a peer took that did no harm, in microseconds: median, 99 of 100, most.
    pub latency: [u64; 3],
    /// What should not have been.
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
    /// The broker that lived through most quiet moments: its first and its last.
    fn longest_life(&self) -> Option<(&Snapshot, &Snapshot)> {
        let lives = self.snapshots.chunk_by(|one, next| one.broker == next.broker);
        let longest = lives.max_by_key(|life| life.len())?;
        Some((longest.first()?, longest.last()?))
    }

    /// As a table.
    pub fn print(&self) {
        println!("\nseed {}, {:.0} s, {} quiet moments", self.seed, self.seconds, self.snapshots.len());
        let (Some(first), Some(last)) = (self.snapshots.first(), self.snapshots.last()) else { return };
        let Some((from, to)) = self.longest_life() else { return };
        println!("\nat rest {:>24} {:>10} {:>24}", "first", "last", "longest-lived broker");
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
        let [median, most_of, most] = self.latency;
        println!(
            "\npings of a peer that does no harm: median {median} µs, 99 of 100 below {most_of} µs, most {most} µs"
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
            "at_rest": self.snapshots.iter().map(snapshot).collect::<Vec<_>>(),
            "counts": self.counts,
            "ping_us": { "median": self.latency[0], "p99": self.latency[1], "most": self.latency[2] },
            "violations": self.violations,
        })
    }
}
