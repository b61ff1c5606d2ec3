//! Benchmarks: they measure Portreeve and its baselines in one run, in alternating rounds, in nanoseconds for each unit.
//!
//! The speed of machines differs and drifts. In alternating rounds the subjects drift together, so the ratio of their
//! medians is more reliable than the medians. Everything runs on one CPU, and in namespaces of its own, like tests.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use crate::{Host, binaries, namespaces};

/// The time limit of a case.
const BUDGET: Duration = Duration::from_secs(8);
/// How many rounds are enough.
const ROUNDS: usize = 150;
/// The time limit of a case with `--quick`, which only checks that the benchmark works.
const QUICK: Duration = Duration::from_millis(200);
const INSIDE: &str = "--inside";
const INSIDE_QUICK: &str = "--inside-quick";

/// A subject of a measurement: a closure that performs all units of a round.
pub struct Subject<'a> {
    name: &'static str,
    run: Box<dyn FnMut() + 'a>,
    after: Box<dyn FnMut() + 'a>,
}

impl<'a> Subject<'a> {
    /// `name` is `portreeve` or the name of a baseline.
    pub fn new(name: &'static str, run: impl FnMut() + 'a) -> Self {
        Self { name, run: Box::new(run), after: Box::new(|| ()) }
    }

    /// Adds work after each round, which is not measured.
    pub fn after_round(self, after: impl FnMut() + 'a) -> Self {
        Self { after: Box::new(after), ..self }
    }
}

/// A measurement, with its baseline if there is one.
struct Measurement {
    case: String,
    /// `ns`, `ms` or `kB`.
    unit: String,
    value: f64,
    baseline: Option<(String, f64)>,
}

impl Measurement {
    fn to_json(&self) -> Value {
        let mut value = json!({ "case": self.case, "unit": self.unit, "value": self.value });
        if let Some((name, baseline)) = &self.baseline {
            value["baseline"] = json!(name);
            value["baseline_value"] = json!(baseline);
            value["ratio"] = json!(self.value / baseline);
        }
        value
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |key| Some(value.get(key)?.as_str()?.to_owned());
        let number = |key| value.get(key)?.as_f64();
        let baseline = text("baseline").zip(number("baseline_value"));
        Some(Self { case: text("case")?, unit: text("unit")?, value: number("value")?, baseline })
    }

    fn is_of(&self, other: &Self) -> bool {
        let baseline = |measurement: &Self| measurement.baseline.as_ref().map(|(name, _)| name.clone());
        self.case == other.case && baseline(self) == baseline(other)
    }
}

/// Prints a measurement without a baseline, for [`main`] to collect. `unit` is `ms`, `kB` or `B`.
pub fn report(case: &str, unit: &str, value: f64) {
    println!(
        "{}",
        Measurement { case: case.to_owned(), unit: unit.to_owned(), value, baseline: None }.to_json()
    );
}

/// Prints a measurement and its baseline, for [`main`] to collect.
pub fn report_with_baseline(case: &str, unit: &str, value: f64, name: &str, baseline: f64) {
    let baseline = Some((name.to_owned(), baseline.round()));
    let measurement =
        Measurement { case: case.to_owned(), unit: unit.to_owned(), value: value.round(), baseline };
    println!("{}", measurement.to_json());
}

/// Whether a case is selected: the argument, if there is one, is a prefix of its name.
pub fn is_selected(case: &str) -> bool {
    std::env::args().nth(2).is_none_or(|only| case.starts_with(&only))
}

/// The median of samples.
pub fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Measures one case and prints its measurements, for [`main`] to collect. The first subject is `portreeve`.
pub fn measure(case: &str, units: usize, mut subjects: Vec<Subject<'_>>) {
    if !is_selected(case) {
        return;
    }
    let mut samples = vec![Vec::with_capacity(ROUNDS); subjects.len()];
    for one in &mut subjects {
        (one.run)();
        (one.after)();
    }
    let budget = if std::env::args().any(|argument| argument == INSIDE_QUICK) { QUICK } else { BUDGET };
    let end = Instant::now() + budget;
    for round in 0..ROUNDS {
        // The order rotates: what one subject leaves in caches or for the kernel to free later affects all subjects equally.
        let count = subjects.len();
        for turn in 0..count {
            let index = (round + if round % 2 == 0 { turn } else { count - turn }) % count;
            let start = Instant::now();
            (subjects[index].run)();
            samples[index].push(start.elapsed().as_nanos() as f64 / units as f64);
            (subjects[index].after)();
        }
        if Instant::now() > end {
            break;
        }
    }
    let medians: Vec<f64> = samples.iter_mut().map(|samples| median(samples)).collect();
    for (baseline, baseline_ns) in subjects.iter().zip(&medians).skip(1) {
        report_with_baseline(case, "ns", medians[0], baseline.name, *baseline_ns);
    }
}

/// The main function of a benchmark: enters namespaces, calls `inside` there, and prints a table.
///
/// - `--json FILE` also writes the measurements to FILE, and keeps those of other cases in it. A relative FILE is in the
///   workspace's directory.
/// - `--quick` measures each case only for a moment, to check that the benchmark works.
/// - A word selects the cases whose names begin with it.
pub fn main(title: &str, inside: impl FnOnce(&Host)) {
    let mut arguments = std::env::args().skip(1);
    let (mut file, mut inside_flag, mut only) = (None, INSIDE, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            INSIDE | INSIDE_QUICK => {
                let host = Host::prepare();
                share_one_cpu();
                return inside(&host);
            }
            "--json" => file = Some(arguments.next().expect("--json needs a file name")),
            "--quick" => inside_flag = INSIDE_QUICK,
            // Cargo passes this option to every benchmark.
            "--bench" => {}
            option if option.starts_with('-') => {
                panic!("unknown option {option:?}; the options are --json FILE and --quick")
            }
            case => only = Some(case.to_owned()),
        }
    }
    let mut child = namespaces::command(&std::env::current_exe().unwrap())
        .arg(inside_flag)
        .args(only)
        .envs(binaries::variables())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run unshare: {error}. Install the package util-linux"));
    let _stdin = child.stdin.take(); // closing it would end the namespaces
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the benchmark failed ({}): {}", output.status, namespaces::NEEDS);
    let lines = String::from_utf8(output.stdout).unwrap();
    let measurements: Vec<Measurement> = lines
        .lines()
        .map(|line| Measurement::from_json(&serde_json::from_str(line).unwrap()).unwrap())
        .collect();
    print_table(title, &measurements);
    if let Some(file) = file {
        write(&beside_workspace(&file), measurements);
    }
}

/// Restricts this process and its children to one CPU. On two CPUs, processes that take turns would spend more time on
/// waking each other than on their work, and the scheduler's choices would differ from run to run.
fn share_one_cpu() {
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| all_cpus().is_set(*cpu)).unwrap();
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).unwrap();
}

/// The CPUs that this process had at its start.
fn all_cpus() -> &'static CpuSet {
    static ALL: OnceLock<CpuSet> = OnceLock::new();
    ALL.get_or_init(|| sched_getaffinity(None).unwrap())
}

/// Measures a case with all CPUs for this process, what it starts meanwhile, and the broker, as users run it. A machine with
/// one CPU has no such case.
pub fn with_all_cpus(broker: u32, measure: impl FnOnce()) {
    if all_cpus().count() < 2 {
        return;
    }
    let broker = Pid::from_raw(broker.cast_signed());
    let before = sched_getaffinity(None).unwrap();
    for process in [None, broker] {
        sched_setaffinity(process, all_cpus()).unwrap();
    }
    measure();
    for process in [None, broker] {
        sched_setaffinity(process, &before).unwrap();
    }
}

fn beside_workspace(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(file)
}

fn write(file: &Path, measurements: Vec<Measurement>) {
    let existing = std::fs::read_to_string(file).unwrap_or_default();
    let existing: Vec<Value> = serde_json::from_str(&existing).unwrap_or_default();
    let mut all: Vec<Measurement> = existing.iter().filter_map(Measurement::from_json).collect();
    all.retain(|old| !measurements.iter().any(|new| new.is_of(old)));
    all.extend(measurements);
    let array: Vec<Value> = all.iter().map(Measurement::to_json).collect();
    let text = serde_json::to_string_pretty(&array).unwrap();
    std::fs::write(file, text + "\n").unwrap_or_else(|error| panic!("cannot write {file:?}: {error}"));
    println!("wrote {}", file.display());
}

fn print_table(title: &str, measurements: &[Measurement]) {
    println!("{title}\n");
    println!("{:<34} {:<10} {:>14} {:>14} {:>8}", "case", "baseline", "portreeve", "baseline", "ratio");
    for Measurement { case, unit, value, baseline } in measurements {
        let format_value = |value: f64| match &**unit {
            "ns" => format!("{:.1} µs", value / 1000.0),
            unit => format!("{value:.1} {unit}"),
        };
        let (name, baseline, ratio) = match baseline {
            Some((name, baseline)) => (&**name, format_value(*baseline), format!("{:.2}", value / baseline)),
            None => ("", String::new(), String::new()),
        };
        println!("{case:<34} {name:<10} {:>14} {baseline:>14} {ratio:>8}", format_value(*value));
    }
}
