//! `portreeve cluster simulate`: a whole cluster in this process, whose nodes decide as a coordinator does.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use portreeve_coordinator::simulate::Setup;
use portreeve_coordinator::simulate::script::{Report, Row, Script};
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Output, render, table};

/// The events of a script, for --help.
const SCRIPT: &str = "\
A script has one event a line, after its time in seconds; # begins a
comment. A node has a number from 0 on, an address is one of 10.0.0.1
and those after it:

  kill NODE, start NODE           its power fails, and is there again
  cut NODE, join NODE             its network fails, and works again
  sick NODE, well NODE            a health check fails, and succeeds
  coordinator NODE kill|start
  coordinator NODE stop           it hands everything over and ends
  coordinator NODE pause SECONDS  it does not run for so long
  broker NODE kill|start
  broker NODE pause SECONDS
  drain NODE [release]            an operator takes it out of use
  undrain NODE
  pin ADDRESS NODE, unpin ADDRESS
  freeze, thaw                    no address moves without need
  engine down|up|stall SECONDS    the engine does not reply
  engine backup|restore|wipe      it loses what came since the backup,
                                  or everything
  heal                            everything works again
  end                             without it the script ends some time
                                  after the last event

For example:

  30  kill 0
  60  start 0
  90  engine stall 3";

#[derive(clap::Args)]
#[command(after_long_help = SCRIPT)]
pub struct Arguments {
    /// The number of nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    nodes: u32,
    /// The number of addresses.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    addresses: u32,
    /// The lease in seconds.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(3..=3_600))]
    lease: u32,
    /// Nodes keep their addresses while the engine is down and all others promise not to take them: `on_engine_loss = hold`.
    #[arg(long)]
    hold: bool,
    /// How many of a thousand messages are lost, come much too late, or come twice.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=500))]
    noise: u32,
    /// The number from which all randomness follows: the same one gives the same result.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The file of the script.
    #[arg(value_name = "SCRIPT", value_hint = clap::ValueHint::FilePath)]
    script: PathBuf,
}

pub fn run(out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let failed = |error| Failure::System(format!("cannot read {}", arguments.script.display()), error);
    let text = std::fs::read_to_string(&arguments.script).map_err(failed)?;
    let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let nodes = size(arguments.nodes);
    let setup = Setup {
        nodes,
        holders: if arguments.hold { nodes } else { 0 },
        addresses: size(arguments.addresses),
        lease: Duration::from_secs(arguments.lease.into()),
        noise: arguments.noise.into(),
        seed: arguments.seed,
        ..Setup::default()
    };
    let script = Script::parse(&text, setup).map_err(|error| {
        Failure::usage(ErrorKind::ValueValidation, format!("{}: {error}", arguments.script.display()))
    })?;
    let report = script.run();
    match out.json {
        true => out.value(&json!(report))?,
        false => out.text(shown(&report))?,
    }
    Ok(ExitCode::from(u8::from(!report.violations.is_empty())))
}

fn shown(report: &Report) -> String {
    let mut rows = table(["TIME", "EVENT", "WITHOUT HOST", "ALL HAVE ONE", "MOVES", "ADDRESSES OF A NODE"]);
    for row in &report.rows {
        let Row { at, event, unowned, lasted, moves, least, most } = row;
        let lasted = match (unowned, lasted) {
            (0, _) => "-".to_owned(),
            (_, Some(lasted)) => format!("after {lasted:.1} s"),
            (_, None) => "not before the next event".to_owned(),
        };
        let per_node = format!("{least} to {most}");
        rows.add_row([
            format!("{at:.1} s"),
            event.clone(),
            unowned.to_string(),
            lasted,
            moves.to_string(),
            per_node,
        ]);
    }
    let verdict = match report.violations.as_slice() {
        [] => "No address was on two nodes at once.".to_owned(),
        violations => violations.join("\n"),
    };
    format!("{}\n\n{verdict}", render(rows))
}
