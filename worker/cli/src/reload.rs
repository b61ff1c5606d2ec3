//! `portreeve reload`: the broker reads its configuration again, and what that changed is shown.

use std::process::ExitCode;

use portreeve::reload::{Finding, Reloaded};
use portreeve::{Client, Error, FaultCode};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{Output, note, render, table};

#[derive(clap::Args)]
pub struct Arguments {
    /// Read nothing: show what came of the last reload, whoever asked for it.
    #[arg(long)]
    last: bool,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    match client.reload(arguments.last).await {
        Ok(reloaded) => {
            show(out, &reloaded)?;
            Ok(if reloaded.accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(Error::Fault(fault)) if fault.code == FaultCode::Invalid => {
            // The fault has the first mistake; all of them are to be seen, as far as they fit.
            match client.reload(true).await {
                Ok(last) if !last.accepted && out.json => out.value(&value(&last))?,
                Ok(last) if !last.accepted => findings(&last),
                _ => return Err(Error::Fault(fault).into()),
            }
            note("the configuration is refused; the one before it stays in force");
            Ok(ExitCode::from(crate::failure::CONFIG))
        }
        Err(error) => Err(error.into()),
    }
}

fn show(out: Output, reloaded: &Reloaded) -> Result<(), Failure> {
    if out.json {
        return out.value(&value(reloaded));
    }
    findings(reloaded);
    let verdict = match (reloaded.accepted, reloaded.changes.is_empty()) {
        (false, _) => "refused; the configuration before it stays in force",
        (true, true) => "in force; nothing has changed",
        (true, false) => "in force",
    };
    let (number, by, seconds) = (reloaded.number, &reloaded.requester, reloaded.age_ms / 1000);
    out.text(format_args!("reload {number}, by {by}, {seconds} s ago, {} files: {verdict}", reloaded.files))?;
    if !reloaded.changes.is_empty() {
        let mut changes = table(["OUTCOME", "WHAT", "HOW"]);
        for change in reloaded.changes.iter() {
            changes.add_row([change.outcome.to_string(), change.what.to_string(), change.detail.to_string()]);
        }
        out.text(format_args!("\n{}", render(changes)))?;
    }
    if reloaded.changes_omitted > 0 {
        out.text(format_args!("and {} more changes, which are in the log", reloaded.changes_omitted))?;
    }
    Ok(())
}

/// As `portreeved check` shows them, on standard error.
fn findings(reloaded: &Reloaded) {
    for finding in reloaded.findings.iter() {
        eprintln!("{}\n", shown(finding));
    }
    if reloaded.findings_omitted > 0 {
        eprintln!("{} more findings are not shown; put these right first\n", reloaded.findings_omitted);
    }
}

/// Its lines, each without what a terminal obeys.
fn shown(finding: &Finding) -> String {
    let lines = finding.rendered.as_str().lines();
    let lines: Vec<String> = lines
        .map(|line| {
            line.chars().fold(String::new(), |mut out, c| {
                match c.is_control() {
                    true => out.extend(c.escape_default()),
                    false => out.push(c),
                }
                out
            })
        })
        .collect();
    lines.join("\n")
}

fn value(reloaded: &Reloaded) -> Value {
    json!({
        "number": reloaded.number,
        "age_ms": reloaded.age_ms,
        "by": reloaded.requester.as_str(),
        "accepted": reloaded.accepted,
        "files": reloaded.files,
        "changes": *reloaded.changes,
        "changes_omitted": reloaded.changes_omitted,
        "diagnostics": *reloaded.findings,
        "omitted": reloaded.findings_omitted,
    })
}
