//! `portreeve limit`: has the broker set limits of this process, which then becomes the command that it was given.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use portreeve::Client;
use portreeve::limit::{CurrentLimit, UNLIMITED};
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Output, render, table};

#[derive(clap::Args)]
pub struct Arguments {
    /// Which: nofile=65536, or with a soft and a hard limit nofile=4096:65536; a name alone shows it.
    #[arg(required = true, value_name = "NAME[=SOFT[:HARD]]", value_parser = wanted)]
    limits: Vec<Wanted>,
    /// The command to run with them; without one they are shown.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone)]
struct Wanted {
    resource: String,
    soft: Option<u64>,
    hard: Option<u64>,
}

fn wanted(text: &str) -> Result<Wanted, String> {
    let number = |text: &str| match text {
        "unlimited" => Ok(UNLIMITED),
        digits => digits.parse().map_err(|_| format!("{digits:?} is no number and not \"unlimited\"")),
    };
    let (resource, values) = match text.split_once('=') {
        Some((resource, values)) => (resource, Some(values)),
        None => (text, None),
    };
    let (soft, hard) = match values.map(|values| values.split_once(':').unwrap_or((values, values))) {
        Some((soft, hard)) => (Some(number(soft)?), Some(number(hard)?)),
        None => (None, None),
    };
    Ok(Wanted { resource: resource.to_owned(), soft, hard })
}

pub async fn run(client: &Client, out: Output, arguments: Arguments) -> Result<ExitCode, Failure> {
    let mut set = Vec::new();
    for Wanted { resource, soft, hard } in &arguments.limits {
        set.push(client.set_limit(resource, *soft, *hard).await?);
    }
    if let Some((program, rest)) = arguments.command.split_first() {
        let error = Command::new(program).args(rest).exec();
        return Err(Failure::System("running the command", error));
    }
    let number = |limit: u64| Some(limit).filter(|limit| *limit != UNLIMITED);
    if out.json {
        let row = |row: &CurrentLimit| json!({ "resource": row.resource.as_str(), "soft": number(row.soft), "hard": number(row.hard) });
        out.value(&json!({ "limits": set.iter().map(row).collect::<Vec<_>>() }))?;
    } else {
        let word = |limit| number(limit).map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
        let mut shown = table(["LIMIT", "SOFT", "HARD"]);
        shown.add_rows(set.iter().map(|row| [row.resource.to_string(), word(row.soft), word(row.hard)]));
        out.text(render(shown))?;
    }
    Ok(ExitCode::SUCCESS)
}
