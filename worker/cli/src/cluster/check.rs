//! `portreeve cluster check`: whether the cluster and its engine are set up so that they survive what they are meant to.

use std::process::ExitCode;

use portreeve_coordinator::control::{Request, Response};
use portreeve_coordinator::core::check::{Check, Checks, Verdict};
use serde_json::json;

use super::coordinator::{Client, unexpected};
use crate::failure::{FAULT, Failure};
use crate::output::{Output, render, table};

/// What the results mean, for --help.
const NOTES: &str = "\
Results:
  ok       as it should be
  unknown  it could not be found out
  warning  the cluster works, with less safety than it should have
  failure  it does not work, or will not when it is needed

The exit code is 1 if a check fails, with --strict also if there is a
warning. What is unknown never fails.

The coordinator of this host asks every endpoint of the engine, and
reads its certificates. To see the election timeout of a member, which
etcd does not tell, it lets the member grant a lease, which no key has
and which it revokes at once: its shortest length shows the range.";

#[derive(clap::Args)]
#[command(after_long_help = NOTES)]
pub struct Arguments {
    /// Exit with 1 also if there is a warning.
    #[arg(long)]
    strict: bool,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Response::Checks(checks) = client.ask(&Request::Check {}).await? else {
        return Err(unexpected());
    };
    match out.json {
        true => out.value(&json!(checks))?,
        false => out.text(text(&checks))?,
    }
    let worst = if arguments.strict { Verdict::Warning } else { Verdict::Failure };
    Ok(if checks.verdict >= worst { ExitCode::from(FAULT) } else { ExitCode::SUCCESS })
}

fn text(Checks { group, node, checks, .. }: &Checks) -> String {
    let mut rows = table(["CHECK", "OF", "RESULT", "FOUND", "REQUIRED"]);
    rows.add_rows(checks.iter().map(|check| {
        let Check { check, subject, verdict, value, limit, .. } = check;
        // The whole text of what is wrong is below.
        let value = if *verdict == Verdict::Ok { value.as_str() } else { "see below" };
        [check.name(), subject.as_str(), verdict.name(), value, limit.as_str()].map(str::to_owned)
    }));
    let mut parts = vec![render(rows)];
    let mut wrong: Vec<&Check> = checks.iter().filter(|check| check.verdict != Verdict::Ok).collect();
    wrong.sort_by_key(|check| std::cmp::Reverse(check.verdict));
    let sentences: Vec<String> = wrong.into_iter().map(sentence).collect();
    if !sentences.is_empty() {
        parts.push(sentences.join("\n"));
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let counts = [Verdict::Ok, Verdict::Unknown, Verdict::Warning, Verdict::Failure]
        .map(|verdict| format!("{} {}", count(verdict), verdict.name()));
    parts.push(format!("group {group}, node {node}: {}", counts.join(", ")));
    parts.join("\n\n")
}

/// What is wrong, and what to do.
fn sentence(Check { check, subject, verdict, value, remedy, .. }: &Check) -> String {
    let of = if subject.is_empty() { String::new() } else { format!(" of {subject}") };
    format!("{}: {}{of}: {}. {remedy}", verdict.name(), check.name(), value.trim_end_matches('.'))
}
