//! The soak test as a program, which runs mixed load for hours in namespaces of its own. See [`portreeve_tests::soak`].

use std::process::ExitCode;
use std::time::Duration;

use portreeve_tests::soak::{Settings, run};
use portreeve_tests::{Host, binaries, namespaces};

const HELP: &str = "\
usage: soak [OPTION]...

  Runs mixed load on a broker and a worker in new namespaces, kills their processes at random, and checks for violations of
  the invariants. Prints measurements and violations. Exits with status 1 if there are violations.

    --duration SECONDS   run for this time [default: 60]
    --seed NUMBER        seed of the random choices [default: the current time]
    --json               print the report as JSON
    --help               print this text";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (mut settings, mut json, mut inside) =
        (Settings { duration: Duration::from_secs(60), seed: 0 }, false, false);
    let mut rest = &words[..];
    while let [word, after @ ..] = rest {
        rest = match (*word, after) {
            ("--inside", after) => {
                inside = true;
                after
            }
            ("--json", after) => {
                json = true;
                after
            }
            ("--duration", [value, after @ ..]) if value.parse().is_ok_and(|number: u64| number > 0) => {
                settings.duration = Duration::from_secs(value.parse().unwrap());
                after
            }
            ("--seed", [value, after @ ..]) if value.parse::<u64>().is_ok() => {
                settings.seed = value.parse().unwrap();
                after
            }
            ("--help", _) => {
                println!("{HELP}");
                return ExitCode::SUCCESS;
            }
            _ => {
                eprintln!("{HELP}\n\nsoak: invalid arguments: {}", rest.join(" "));
                return ExitCode::from(64);
            }
        };
    }
    if settings.seed == 0 {
        settings.seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    }
    if inside { soak(&settings, json) } else { enter(&settings, json) }
}

/// Runs this program again in namespaces.
fn enter(settings: &Settings, json: bool) -> ExitCode {
    eprintln!("seed {}, {} s", settings.seed, settings.duration.as_secs());
    let mut command = namespaces::command(&std::env::current_exe().unwrap());
    command
        .args(["--inside", "--duration", &settings.duration.as_secs().to_string()])
        .args(["--seed", &settings.seed.to_string()])
        .args(json.then_some("--json"))
        .envs(binaries::variables());
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("cannot run unshare: {error}. {}", namespaces::NEEDS));
    let input = child.stdin.take();
    let status = child.wait().unwrap();
    drop(input);
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn soak(settings: &Settings, json: bool) -> ExitCode {
    let report = run(&Host::prepare(), settings);
    if json {
        println!("{:#}", report.to_json());
    } else {
        report.print();
    }
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
