//! The faults of a cluster of three hosts, each several times in a new cluster, with the referee's verdicts and measurements.
//! See [`portreeve_tests::cluster`]; `tests/cluster/run` starts it.

use std::io::{BufRead as _, BufReader};
use std::num::NonZeroUsize;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use portreeve_tests::cluster::Settings;
use portreeve_tests::cluster::fault::{FAULTS, Fault};
use portreeve_tests::cluster::measure::{Plan, SECTIONS, Section};
use portreeve_tests::cluster::row::Bench;
use portreeve_tests::{Host, binaries, namespaces};
use serde_json::{Value, json};

const HELP: &str = "\
usage: cluster [OPTION]... [FAULT]...
       cluster measure [--runs NUMBER] [--minutes NUMBER] [--json FILE] [--verbose] [SECTION]...

  Runs each fault in a new cluster of three hosts, and prints a table with verdicts and measurements. Exits with status 1 if the
  referee found a violation.

    --runs NUMBER      how often to run each fault [default: 5]
    --at-once NUMBER   how many clusters run at once [default: 1]
    --quiet SECONDS    how long nothing may move after each fault [default: 30]
    --lease SECONDS    the lease of the nodes [default: 3]
    --impatient        let the coordinators evict after half of a lease: the referee must find that
    --json FILE        also write the results to FILE
    --verbose          show the output of all runs, not only of those with violations
    --list             print the names of all faults and sections
    --help             print this text

  measure runs each section in a cluster of its own, and prints what it measured as JSON.

    --runs NUMBER      how often to repeat each fault and each move [default: 5]
    --minutes NUMBER   how long to measure processor time and growth [default: 5]";

/// Before the result in the output of a run.
const RESULT: &str = "result: ";

#[derive(Default)]
struct Options {
    runs: usize,
    at_once: usize,
    quiet: u64,
    settings: Settings,
    json: Option<String>,
    is_verbose: bool,
    minutes: u64,
    /// This process is in namespaces of its own.
    is_inside: bool,
    faults: Vec<&'static Fault>,
    /// What to measure; otherwise faults are judged.
    is_measurement: bool,
    sections: Vec<&'static Section>,
}

fn parse(arguments: &[String]) -> Option<Options> {
    let mut options = Options { runs: 5, at_once: 1, quiet: 30, minutes: 5, ..Options::default() };
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--runs" => options.runs = words.next()?.parse::<NonZeroUsize>().ok()?.get(),
            "--at-once" => options.at_once = words.next()?.parse::<NonZeroUsize>().ok()?.get(),
            "--quiet" => options.quiet = words.next()?.parse().ok()?,
            "--lease" => options.settings.lease = words.next()?.parse().ok()?,
            "--json" => options.json = Some(words.next()?.to_owned()),
            "--minutes" => options.minutes = words.next()?.parse().ok()?,
            "measure" => options.is_measurement = true,
            "--impatient" => options.settings.impatient = true,
            "--verbose" => options.is_verbose = true,
            "--inside" => options.is_inside = true,
            name if options.is_measurement => {
                options.sections.push(SECTIONS.iter().find(|section| section.name == name)?);
            }
            name => options.faults.push(FAULTS.iter().find(|fault| fault.name == name)?),
        }
    }
    if options.faults.is_empty() {
        options.faults = FAULTS.iter().collect();
    }
    if options.sections.is_empty() {
        options.sections = SECTIONS.iter().collect();
    }
    Some(options)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--help") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some("--list") => {
            FAULTS.iter().for_each(|fault| println!("{:28} {}", fault.name, fault.what));
            SECTIONS.iter().for_each(|section| println!("measure {:20} {}", section.name, section.what));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let Some(options) = parse(&arguments) else {
        eprintln!("{HELP}\n\ncluster: invalid arguments: {}", arguments.join(" "));
        return ExitCode::from(64);
    };
    match (options.is_inside, options.is_measurement) {
        (true, true) => measure_inside(&options),
        (true, false) => inside(options),
        (false, true) => measure(&options),
        (false, false) => outside(&options),
    }
}

/// Runs the fault in the namespaces of this process.
fn inside(options: Options) -> ExitCode {
    let host = Host::prepare();
    let mut bench = Bench::start(&host, options.settings);
    let fault = options.faults[0];
    let mut outcome = bench.run(fault, Duration::from_secs(options.quiet));
    outcome.violations.extend(bench.judge());
    println!("{RESULT}{}", outcome.to_json());
    if outcome.violations.is_empty() {
        return ExitCode::SUCCESS;
    }
    // Its logs are printed while a thread panics.
    panic!("{:#?}", outcome.violations);
}

/// Measures the section in the namespaces of this process.
fn measure_inside(options: &Options) -> ExitCode {
    let host = Host::prepare();
    let plan = Plan { runs: options.runs, minutes: options.minutes };
    println!("{RESULT}{}", (options.sections[0].measure)(&host, plan));
    ExitCode::SUCCESS
}

/// Runs a fault once.
fn run(options: &Options, fault: &Fault) -> (Option<Value>, bool) {
    let (quiet, lease) = (options.quiet.to_string(), options.settings.lease.to_string());
    let mut arguments = vec!["--inside", "--quiet", &quiet, "--lease", &lease];
    arguments.extend(options.settings.impatient.then_some("--impatient"));
    arguments.push(fault.name);
    enter(options, &arguments)
}

/// Runs this program in new namespaces: its result, if it had one, and whether it succeeded.
fn enter(options: &Options, arguments: &[&str]) -> (Option<Value>, bool) {
    let mut command = namespaces::command(&std::env::current_exe().unwrap());
    command.args(arguments);
    let (output, writer) = std::io::pipe().unwrap();
    command.envs(binaries::variables()).stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("cannot run unshare: {error}. {}", namespaces::NEEDS));
    let input = child.stdin.take();
    // Closes the write end of the pipe in this process.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (mut result, mut lines) = (None, Vec::new());
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        match line.strip_prefix(RESULT) {
            Some(text) => result = serde_json::from_str(text).ok(),
            None if options.is_verbose => println!("{line}"),
            None => lines.push(line),
        }
    }
    let is_good = child.wait().unwrap().success();
    drop(input);
    if !is_good {
        println!("{}", lines.join("\n"));
    }
    (result, is_good)
}

/// The median and the highest of some times.
fn spread(results: &[Value], name: &str) -> Option<(f64, f64)> {
    let mut times: Vec<f64> = results.iter().filter_map(|result| result[name].as_f64()).collect();
    times.sort_by(f64::total_cmp);
    Some((*times.get(times.len() / 2)?, *times.last()?))
}

fn outside(options: &Options) -> ExitCode {
    println!(
        "{:28} {:>4}  {:>15}  {:>15}  {:>15}  verdict",
        "fault", "runs", "moved in", "IPv6 moved in", "silent"
    );
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let rows: Vec<(Value, bool)> = thread::scope(|scope| {
        for _ in 0..options.at_once {
            let (next, sender) = (&next, sender.clone());
            scope.spawn(move || {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed) / options.runs;
                    let Some(fault) = options.faults.get(place) else { break };
                    sender.send((place, run(options, fault))).expect("a receiver until all have sent");
                }
            });
        }
        drop(sender);
        let mut runs: Vec<Vec<_>> = options.faults.iter().map(|_| Vec::new()).collect();
        let mut rows = Vec::new();
        for (place, run) in receiver {
            runs[place].push(run);
            // In the order of the faults.
            while let Some(next) = runs.get_mut(rows.len()).filter(|runs| runs.len() == options.runs) {
                rows.push(row(options.faults[rows.len()], std::mem::take(next)));
            }
        }
        rows
    });
    let is_good = rows.iter().all(|(_, is_good)| *is_good);
    let rows: Vec<Value> = rows.into_iter().map(|(row, _)| row).collect();
    let report = json!({ "lease": options.settings.lease, "quiet": options.quiet, "faults": rows });
    write_json(options, &report);
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the row of a fault, and returns it for the report, and whether all its runs were good.
fn row(fault: &Fault, runs: Vec<(Option<Value>, bool)>) -> (Value, bool) {
    let (count, bad) = (runs.len(), runs.iter().filter(|(_, is_good)| !is_good).count());
    let results: Vec<Value> = runs.into_iter().filter_map(|(result, _)| result).collect();
    let show = |name: &str| {
        spread(&results, name)
            .map_or_else(|| "-".to_owned(), |(median, worst)| format!("{median:.2} ({worst:.2}) s"))
    };
    let verdict = if bad == 0 { "good".to_owned() } else { format!("{bad} with violations") };
    let [moved, ipv6, silent] = ["moved_in", "ipv6_moved_in", "silence"].map(show);
    println!("{:28} {count:>4}  {moved:>15}  {ipv6:>15}  {silent:>15}  {verdict}", fault.name);
    let row = json!({
        "fault": fault.name,
        "what": fault.what,
        "runs": count,
        "runs_with_violations": bad,
        "results": results,
    });
    (row, bad == 0)
}

/// The load of this machine: how many processes wanted to run, on average over the last minute.
fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

fn measure(options: &Options) -> ExitCode {
    let processors = thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut report = json!({ "kernel": kernel.trim(), "processors": processors });
    let mut is_good = true;
    for section in &options.sections {
        let before = load();
        let (runs, minutes) = (options.runs.to_string(), options.minutes.to_string());
        let arguments = ["measure", "--inside", "--runs", &runs, "--minutes", &minutes, section.name];
        let (result, has_succeeded) = enter(options, &arguments);
        is_good &= has_succeeded;
        report[section.name] =
            json!({ "what": section.what, "result": result, "load_before": before, "load_after": load() });
        println!("{}: {:#}", section.name, report[section.name]);
        // After each section, because all of them take an hour.
        write_json(options, &report);
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write_json(options: &Options, report: &Value) {
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{report:#}\n"))
            .unwrap_or_else(|error| panic!("cannot write {file}: {error}"));
    }
}
