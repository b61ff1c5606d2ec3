//! Latencies of well-behaved peers, while the host is idle and during a trick.
//!
//! The statistic of an operation is the largest sample without the worst tenth, at least one sample: a test on a busy
//! machine then does not fail because of one delayed wake-up, and a broker that delays each fifth request does not pass. A
//! request that takes longer than [`PATIENCE`] is a violation of its own.
//!
//! Hostile peers and other programs also use the machine itself. The control is an operation without a broker: the bounds
//! grow by as much as it has become slower.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a well-behaved peer waits for a reply.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The allowance beyond twice the idle latency.
const ALLOWANCE: Duration = Duration::from_millis(200);

/// The control.
const CONTROL: &str = "control: run a program";

/// Only [`PATIENCE`] bounds these: the time of the first grows with the objects of all peers, and in the second one two
/// processes start and connect.
const LONG: [&str; 2] = ["root: status", "worker: restart"];

/// Samples by operation.
#[derive(Clone, Debug, Default)]
pub struct Latencies(BTreeMap<&'static str, Vec<Duration>>);

impl Latencies {
    /// Measures one operation, if it succeeds.
    pub fn measure<T, E>(
        &mut self,
        operation: &'static str,
        act: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let begin = Instant::now();
        let done = act()?;
        self.0.entry(operation).or_default().push(begin.elapsed());
        Ok(done)
    }

    /// The statistic of one operation.
    fn of(&self, operation: &str) -> Option<Duration> {
        let mut sorted = self.0.get(operation)?.clone();
        sorted.sort_unstable();
        let worst = sorted.len().div_ceil(10);
        sorted.get(sorted.len().saturating_sub(worst + 1)).copied()
    }

    /// Measures the control.
    pub fn measure_control(&mut self) {
        let run = || Command::new("true").status();
        self.measure(CONTROL, run).unwrap_or_else(|error| panic!("cannot run true: {error}"));
    }

    /// How many times as long as on the idle host the control takes; at least 1.
    fn slowdown(&self, idle: &Self) -> f64 {
        let median = |latencies: &Self| {
            let mut sorted = latencies.0.get(CONTROL)?.clone();
            sorted.sort_unstable();
            sorted.get(sorted.len() / 2).map(Duration::as_secs_f64)
        };
        median(self).zip(median(idle)).map_or(1.0, |(now, before)| (now / before).max(1.0))
    }

    /// The operations that take more than twice their idle latency and the allowance: what was measured, and the bound.
    pub fn beyond(&self, idle: &Self) -> Vec<String> {
        let slowdown = self.slowdown(idle);
        let late = |(operation, samples): (&&'static str, &Vec<Duration>)| {
            let (now, before) = (self.of(operation)?, idle.of(operation).unwrap_or_default());
            let bound = (before * 2 + ALLOWANCE).mul_f64(slowdown);
            (*operation != CONTROL && !LONG.contains(operation) && now > bound).then(|| {
                let worst = samples.iter().max().copied().unwrap_or_default();
                format!(
                    "{operation} took {now:.1?} ({} samples, worst {worst:.1?}), idle {before:.1?}, bound {bound:.1?}",
                    samples.len()
                )
            })
        };
        self.0.iter().filter_map(late).collect()
    }

    /// The statistic of the slowest operation, for a line of output.
    pub fn slowest(&self) -> String {
        let slowest = self.0.keys().filter_map(|name| Some((self.of(name)?, name))).max();
        slowest.map_or_else(String::new, |(time, name)| format!("{name} {:.1} ms", time.as_secs_f64() * 1e3))
    }
}
