//! `portreeve reload`: makes the broker read its configuration again, and shows what changed.

use std::process::ExitCode;

use portreeve::printable::Escaped;
use portreeve::reload::{Finding, Reloaded};
use portreeve::{Client, Error, FaultCode};
use serde_json::{Value, json};

use crate::failure::{self, Failure};
use crate::output::{self, Output, duration, render, table};

#[derive(clap::Args)]
pub struct Arguments {
    /// Show the result of the last reload, by any peer, and reload nothing.
    #[arg(long)]
    last: bool,
    /// Reload even if this closes every listener of a listener scope, or every static listener.
    #[arg(long, conflicts_with = "last")]
    force: bool,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let reloaded = match arguments.force {
        true => client.force_reload().await,
        false => client.reload(arguments.last).await,
    };
    match reloaded {
        Ok(reloaded) => {
            show(out, &reloaded)?;
            Ok(if reloaded.accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(Error::Fault(fault)) if fault.code == FaultCode::Invalid => {
            // The fault has only the first mistake; the result of the last reload has as many as fit.
            match client.reload(true).await {
                Ok(last) if !last.accepted && out.json => {
                    let mut shown = value(&last);
                    if let Some(shown) = shown.as_object_mut() {
                        shown.insert("error".to_owned(), failure::fault_value(&fault));
                    }
                    out.value(&shown)?;
                }
                Ok(last) if !last.accepted => {
                    print_findings(&last);
                    output::error(
                        "the new configuration is refused; the previous one stays in force. Correct it and reload again",
                    );
                }
                _ => return Err(Error::Fault(fault).into()),
            }
            Ok(ExitCode::from(failure::CONFIG))
        }
        Err(error) => Err(error.into()),
    }
}

fn show(out: Output, reloaded: &Reloaded) -> Result<(), Failure> {
    if out.json {
        return out.value(&value(reloaded));
    }
    print_findings(reloaded);
    let verdict = match (reloaded.accepted, reloaded.changes.is_empty()) {
        (false, _) => "refused; the previous configuration stays in force",
        (true, true) => "in force, nothing changed",
        (true, false) => "in force",
    };
    let (number, by, age) = (reloaded.number, &reloaded.requester, duration(reloaded.age_ms / 1000));
    let files = if reloaded.files == 1 { "file" } else { "files" };
    out.text(format_args!("reload {number}, by {by}, {age} ago, {} {files}: {verdict}", reloaded.files))?;
    if !reloaded.changes.is_empty() {
        let mut changes = table(["OUTCOME", "SUBJECT", "DETAIL"]);
        for change in reloaded.changes.iter() {
            changes.add_row([change.outcome.to_string(), change.what.to_string(), change.detail.to_string()]);
        }
        out.text(format_args!("\n{}", render(changes)))?;
    }
    if reloaded.changes_omitted > 0 {
        out.text(format_args!("{} more changes are in the log", reloaded.changes_omitted))?;
    }
    Ok(())
}

/// Prints the findings on standard error, as `portreeved check` does.
fn print_findings(reloaded: &Reloaded) {
    for finding in reloaded.findings.iter() {
        eprintln!("{}\n", escaped(finding));
    }
    if reloaded.findings_omitted > 0 {
        eprintln!("{} more are not shown; correct these first\n", reloaded.findings_omitted);
    }
}

/// The lines of a finding, with the characters escaped that are not printable.
fn escaped(finding: &Finding) -> String {
    let lines = finding.rendered.as_str().lines();
    let lines: Vec<String> = lines.map(|line| Escaped(line).to_string()).collect();
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
