//! Measuring ours beside its floors: in one run, in turns, as nanoseconds a unit and as ratios.
//!
//! Machines differ and drift; two things measured in alternating rounds drift together, so the ratio of their
//! medians says what the figures alone cannot. All of it runs on one CPU. Benchmarks run in namespaces of their own, like tests.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use crate::{Host, binaries, namespaces};

/// What one case may take, and how many rounds are enough; and what it may take where only that it works is of interest.
const BUDGET: Duration = Duration::from_secs(8);
const ROUNDS: usize = 150;
const QUICK: Duration = Duration::from_millis(200);
const INSIDE: &str = "--inside";
const INSIDE_QUICKLY: &str = "--inside-quickly";

/// Something to measure: a closure that does all units of a round.
pub struct Contender<'a> {
    name: &'static str,
    run: Box<dyn FnMut() + 'a>,
    after: Box<dyn FnMut() + 'a>,
}

impl<'a> Contender<'a> {
    /// `name` is `ours`, or the floor's.
    pub fn new(name: &'static str, run: impl FnMut() + 'a) -> Self {
        Self { name, run: Box::new(run), after: Box::new(|| ()) }
    }

    /// What is to be done after each round, when the clock does not run.
    pub fn then(self, after: impl FnMut() + 'a) -> Self {
        Self { after: Box::new(after), ..self }
    }
}

/// One figure, beside a floor where there is one.
struct Figure {
    case: String,
    /// `ns`, `ms` or `kB`.
    unit: String,
    ours: f64,
    floor: Option<(String, f64)>,
}

impl Figure {
    fn to_json(&self) -> Value {
        let mut value = json!({ "case": self.case, "unit": self.unit, "ours": self.ours });
        if let Some((name, floor)) = &self.floor {
            value["floor"] = json!(name);
            value["floor_value"] = json!(floor);
            value["ratio"] = json!(self.ours / floor);
        }
        value
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |key| Some(value.get(key)?.as_str()?.to_owned());
        let number = |key| value.get(key)?.as_f64();
        let floor = text("floor").zip(number("floor_value"));
        Some(Self { case: text("case")?, unit: text("unit")?, ours: number("ours")?, floor })
    }

    fn is_of(&self, other: &Self) -> bool {
        let floor = |figure: &Self| figure.floor.as_ref().map(|(name, _)| name.clone());
        self.case == other.case && floor(self) == floor(other)
    }
}

/// Prints one figure that has no floor, for [`main`] to collect. `unit` is `ms` or `kB`.
pub fn report(case: &str, unit: &str, ours: f64) {
    println!("{}", Figure { case: case.to_owned(), unit: unit.to_owned(), ours, floor: None }.to_json());
}

/// Prints one figure beside its floor, for [`main`] to collect.
pub fn report_beside(case: &str, unit: &str, ours: f64, name: &str, floor: f64) {
    let floor = Some((name.to_owned(), floor.round()));
    let figure = Figure { case: case.to_owned(), unit: unit.to_owned(), ours: ours.round(), floor };
    println!("{}", figure.to_json());
}

/// Whether the cases asked for, if any were, are those whose names begin so.
pub fn is_wanted(case: &str) -> bool {
    std::env::args().nth(2).is_none_or(|only| case.starts_with(&only))
}

/// The median of what was measured several times.
pub fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Measures one case, `ours` first among the contenders, and prints its figures for [`main`] to collect.
pub fn measure(case: &str, units: usize, mut contenders: Vec<Contender<'_>>) {
    if !is_wanted(case) {
        return;
    }
    let mut samples = vec![Vec::with_capacity(ROUNDS); contenders.len()];
    for one in &mut contenders {
        (one.run)();
        (one.after)();
    }
    let budget = if std::env::args().any(|argument| argument == INSIDE_QUICKLY) { QUICK } else { BUDGET };
    let end = Instant::now() + budget;
    for round in 0..ROUNDS {
        // Each begins as often as any other and comes after every other: what one leaves behind, in caches or for the
        // kernel to free later, is borne by all.
        let count = contenders.len();
        for turn in 0..count {
            let index = (round + if round % 2 == 0 { turn } else { count - turn }) % count;
            let start = Instant::now();
            (contenders[index].run)();
            samples[index].push(start.elapsed().as_nanos() as f64 / units as f64);
            (contenders[index].after)();
        }
        if Instant::now() > end {
            break;
        }
    }
    let medians: Vec<f64> = samples.iter_mut().map(|samples| median(samples)).collect();
    for (floor, floor_ns) in contenders.iter().zip(&medians).skip(1) {
        report_beside(case, "ns", medians[0], floor.name, *floor_ns);
    }
}

/// The main function of a benchmark: enters namespaces, has `inside` measure there, prints the table and
/// writes the file that `--json FILE` names, whose other figures stay. A relative FILE lies beside the workspace's
/// Cargo.toml. A word has only the cases measured that begin with it. `--quick` shows that everything works and measures little.
pub fn main(title: &str, inside: impl FnOnce(&Host)) {
    let mut arguments = std::env::args().skip(1);
    let (mut file, mut inside_how, mut only) = (None, INSIDE, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            INSIDE | INSIDE_QUICKLY => {
                let host = Host::prepare();
                share_one_cpu();
                return inside(&host);
            }
            "--json" => file = Some(arguments.next().expect("--json needs a file's name")),
            "--quick" => inside_how = INSIDE_QUICKLY,
            // Cargo passes it to every benchmark.
            "--bench" => {}
            option if option.starts_with('-') => {
                panic!("{option:?} is no option here: there are --json FILE and --quick")
            }
            case => only = Some(case.to_owned()),
        }
    }
    let mut child = namespaces::command(&std::env::current_exe().unwrap())
        .arg(inside_how)
        .args(only)
        .envs(binaries::variables())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("unshare cannot be run: {error}; it is in the package util-linux"));
    // While it is open the namespaces live.
    let _lifeline = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the benchmark failed ({}): {}", output.status, namespaces::NEEDS);
    let lines = String::from_utf8(output.stdout).unwrap();
    let figures: Vec<Figure> =
        lines.lines().map(|line| Figure::from_json(&serde_json::from_str(line).unwrap()).unwrap()).collect();
    print_table(title, &figures);
    if let Some(file) = file {
        write(&beside_workspace(&file), figures);
    }
}

/// Holds this process and all that it starts to one CPU. Where two processes that take turns are put on two,
/// waking the other costs more than their work, and the kernel's choice is not the same from run to run.
fn share_one_cpu() {
    let allowed = sched_getaffinity(None).unwrap();
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)).unwrap();
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).unwrap();
}

fn beside_workspace(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(file)
}

fn write(file: &Path, figures: Vec<Figure>) {
    let there = std::fs::read_to_string(file).unwrap_or_default();
    let there: Vec<Value> = serde_json::from_str(&there).unwrap_or_default();
    let mut all: Vec<Figure> = there.iter().filter_map(Figure::from_json).collect();
    all.retain(|old| !figures.iter().any(|new| new.is_of(old)));
    all.extend(figures);
    let array: Vec<Value> = all.iter().map(Figure::to_json).collect();
    let text = serde_json::to_string_pretty(&array).unwrap();
    std::fs::write(file, text + "\n").unwrap_or_else(|error| panic!("{file:?} cannot be written: {error}"));
    println!("written to {}", file.display());
}

fn print_table(title: &str, figures: &[Figure]) {
    println!("{title}\n");
    println!("{:<24} {:<10} {:>14} {:>14} {:>8}", "case", "floor", "ours", "floor", "ratio");
    for Figure { case, unit, ours, floor } in figures {
        let shown = |value: f64| match &**unit {
            "ns" => format!("{:.1} µs", value / 1000.0),
            unit => format!("{value:.1} {unit}"),
        };
        let (name, floor, ratio) = match floor {
            Some((name, floor)) => (&**name, shown(*floor), format!("{:.2}", ours / floor)),
            None => ("", String::new(), String::new()),
        };
        println!("{case:<24} {name:<10} {:>14} {floor:>14} {ratio:>8}", shown(*ours));
    }
}
