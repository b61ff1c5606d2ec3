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

/// What one case may take, and how many rounds are enough.
const BUDGET: Duration = Duration::from_secs(8);
const ROUNDS: usize = 150;
const INSIDE: &str = "--inside";

/// Something to measure: a closure that does all units of a round.
pub struct Contender<'a> {
    name: &'static str,
    run: Box<dyn FnMut() + 'a>,
}

impl<'a> Contender<'a> {
    /// `name` is `ours`, or the floor's.
    pub fn new(name: &'static str, run: impl FnMut() + 'a) -> Self {
        Self { name, run: Box::new(run) }
    }
}

/// One case beside one floor.
struct Figure {
    case: String,
    ours_ns: f64,
    floor_ns: f64,
    floor: String,
}

impl Figure {
    fn to_json(&self) -> Value {
        json!({
            "case": self.case,
            "ours_ns": self.ours_ns,
            "floor_ns": self.floor_ns,
            "floor": self.floor,
            "ratio": self.ours_ns / self.floor_ns,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        Some(Self {
            case: value.get("case")?.as_str()?.to_owned(),
            ours_ns: value.get("ours_ns")?.as_f64()?,
            floor_ns: value.get("floor_ns")?.as_f64()?,
            floor: value.get("floor")?.as_str()?.to_owned(),
        })
    }
}

/// Measures one case, `ours` first among the contenders, and prints its figures for [`main`] to collect.
pub fn measure(case: &str, units: usize, mut contenders: Vec<Contender<'_>>) {
    let mut samples = vec![Vec::with_capacity(ROUNDS); contenders.len()];
    contenders.iter_mut().for_each(|one| (one.run)());
    let end = Instant::now() + BUDGET;
    for round in 0..ROUNDS {
        // Each begins as often as any other, so that none always runs on the caches of the same one.
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            let start = Instant::now();
            (contenders[index].run)();
            samples[index].push(start.elapsed().as_nanos() as f64 / units as f64);
        }
        if Instant::now() > end {
            break;
        }
    }
    let medians: Vec<f64> = samples.iter_mut().map(|samples| median(samples)).collect();
    for (floor, floor_ns) in contenders.iter().zip(&medians).skip(1) {
        let figure = Figure {
            case: case.to_owned(),
            ours_ns: medians[0].round(),
            floor_ns: floor_ns.round(),
            floor: floor.name.to_owned(),
        };
        println!("{}", figure.to_json());
    }
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// The main function of a benchmark: enters namespaces, has `inside` measure there, prints the table and
/// writes the file that `--json FILE` names. A relative FILE lies beside the workspace's Cargo.toml.
pub fn main(title: &str, inside: impl FnOnce(&Host)) {
    let mut arguments = std::env::args().skip(1);
    let mut file = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            INSIDE => {
                let host = Host::prepare();
                share_one_cpu();
                return inside(&host);
            }
            "--json" => file = Some(arguments.next().expect("--json needs a file's name")),
            // Cargo passes it to every benchmark.
            "--bench" => {}
            other => panic!("{other:?} is no option here: there is --json FILE"),
        }
    }
    let mut child = namespaces::command(&std::env::current_exe().unwrap())
        .arg(INSIDE)
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
        write(&beside_workspace(&file), &figures);
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

fn write(file: &Path, figures: &[Figure]) {
    let array: Vec<Value> = figures.iter().map(Figure::to_json).collect();
    let text = serde_json::to_string_pretty(&array).unwrap();
    std::fs::write(file, text + "\n").unwrap_or_else(|error| panic!("{file:?} cannot be written: {error}"));
    println!("written to {}", file.display());
}

fn print_table(title: &str, figures: &[Figure]) {
    println!("{title}\n");
    println!("{:<20} {:<10} {:>12} {:>12} {:>8}", "case", "floor", "ours", "floor", "ratio");
    for figure in figures {
        println!(
            "{:<20} {:<10} {:>9.1} µs {:>9.1} µs {:>8.2}",
            figure.case,
            figure.floor,
            figure.ours_ns / 1000.0,
            figure.floor_ns / 1000.0,
            figure.ours_ns / figure.floor_ns
        );
    }
}
