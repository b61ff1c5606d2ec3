//! `portreeve limit`: shows resource limits of this process, or requests them from the broker; then executes a command.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use clap::error::ErrorKind;
use clap_complete::ArgValueCandidates;
use portreeve::Text;
use portreeve::limit::{CurrentLimit, UNLIMITED};
use rustix::process::{Resource, getrlimit};
use serde_json::json;

use crate::broker::Broker;
use crate::complete;
use crate::failure::Failure;
use crate::output::{Output, render, table};

#[derive(clap::Args)]
pub struct Arguments {
    /// Limits: nofile=65536, or nofile=4096:65536 with a soft and a hard limit; a name alone shows the limit.
    #[arg(required = true, value_name = "NAME[=SOFT[:HARD]]", value_parser = parse_limit, add = ArgValueCandidates::new(complete::limits))]
    limits: Vec<LimitArgument>,
    /// The command to run with the limits. Without a command, the limits are shown.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone)]
struct LimitArgument {
    resource: String,
    soft: Option<u64>,
    hard: Option<u64>,
}

fn parse_limit(text: &str) -> Result<LimitArgument, String> {
    let number = |text: &str| match text {
        "unlimited" => Ok(UNLIMITED),
        digits => digits.parse().map_err(|_| format!("{digits:?} is neither a number nor \"unlimited\"")),
    };
    let (resource, values) = match text.split_once('=') {
        Some((resource, values)) => (resource, Some(values)),
        None => (text, None),
    };
    let (soft, hard) = match values.map(|values| values.split_once(':').unwrap_or((values, values))) {
        Some((soft, hard)) => (Some(number(soft)?), Some(number(hard)?)),
        None => (None, None),
    };
    Ok(LimitArgument { resource: resource.to_owned(), soft, hard })
}

/// The limits by their names in setrlimit(2), in lower case and without `RLIMIT_`.
pub const RESOURCES: [(&str, Resource); 16] = [
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

/// A limit of this process. It inherits its limits, so they are those of the process that started it.
fn own(resource: &str) -> Result<CurrentLimit, Failure> {
    let Some((name, known)) = RESOURCES.iter().find(|(name, _)| *name == resource) else {
        let names = RESOURCES.map(|(name, _)| name).join(", ");
        let message = format!("there is no limit {resource:?}: use one of {names}");
        return Err(Failure::usage(ErrorKind::InvalidValue, message));
    };
    let limit = getrlimit(*known);
    let number = |limit: Option<u64>| limit.unwrap_or(UNLIMITED);
    Ok(CurrentLimit {
        resource: Text::truncated(name),
        soft: number(limit.current),
        hard: number(limit.maximum),
    })
}

pub async fn run(broker: &Broker, out: Output, arguments: Arguments) -> Result<ExitCode, Failure> {
    let (mut in_force, mut client) = (Vec::new(), None);
    for LimitArgument { resource, soft, hard } in &arguments.limits {
        if (soft, hard) == (&None, &None) {
            in_force.push(own(resource)?);
            continue;
        }
        let client = match &client {
            Some(client) => client,
            None => client.insert(broker.open().await?),
        };
        in_force.push(client.set_limit(resource, *soft, *hard).await?);
    }
    if let Some((program, rest)) = arguments.command.split_first() {
        let error = Command::new(program).args(rest).exec();
        return Err(Failure::System(format!("cannot run {:?}", program.to_string_lossy()), error));
    }
    let number = |limit: u64| Some(limit).filter(|limit| *limit != UNLIMITED);
    if out.json {
        let row = |row: &CurrentLimit| json!({ "resource": row.resource.as_str(), "soft": number(row.soft), "hard": number(row.hard) });
        out.value(&json!({ "limits": in_force.iter().map(row).collect::<Vec<_>>() }))?;
    } else {
        let word = |limit| number(limit).map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
        let mut shown = table(["LIMIT", "SOFT", "HARD"]);
        shown.add_rows(in_force.iter().map(|row| [row.resource.to_string(), word(row.soft), word(row.hard)]));
        out.text(render(shown))?;
    }
    Ok(ExitCode::SUCCESS)
}
