//! Simulates a cluster.
//!
//! ```sh
//! cargo run --release -p portreeve-coordinator --example simulate -- --nodes 3 --addresses 10 SCRIPT
//! ```

use std::process::ExitCode;
use std::time::Duration;

use portreeve_coordinator::simulate::Setup;
use portreeve_coordinator::simulate::script::Script;

const USAGE: &str = "usage: simulate [--nodes N] [--addresses N] [--lease SECONDS] [--noise PER-MILLE] [--seed N] [--json] SCRIPT";

fn main() -> ExitCode {
    match run() {
        Ok(is_good) => ExitCode::from(u8::from(!is_good)),
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(64) // EX_USAGE
        }
    }
}

fn run() -> Result<bool, String> {
    let (mut setup, mut is_json, mut path) = (Setup::default(), false, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let text = arguments.next().ok_or(format!("{argument} needs a number\n{USAGE}"))?;
            text.parse::<u64>().map_err(|_| format!("{argument} needs a number, not {text:?}"))
        };
        let size = |number: u64| usize::try_from(number).map_err(|error| error.to_string());
        match argument.as_str() {
            "--nodes" => setup.nodes = size(number()?.max(1))?,
            "--addresses" => setup.addresses = size(number()?)?,
            "--lease" => setup.lease = Duration::from_secs(number()?.max(3)),
            "--noise" => setup.noise = number()?,
            "--seed" => setup.seed = number()?,
            "--json" => is_json = true,
            option if option.starts_with('-') => return Err(format!("there is no option {option}\n{USAGE}")),
            _ => path = Some(argument),
        }
    }
    let path = path.ok_or(USAGE)?;
    let text = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let report = Script::parse(&text, setup).map_err(|error| format!("{path}: {error}"))?.run();
    if is_json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?);
    } else {
        print!("{report}");
    }
    Ok(report.violations.is_empty())
}
