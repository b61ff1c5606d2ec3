//! The result of a reload: rows for the reply, lines for the log.

use portreeve_protocol::event::{Event, EventCode};
use portreeve_protocol::reload::{Change, Finding, Reloaded};
use portreeve_protocol::{Fault, FaultCode, List, Text};

use crate::config::{Diagnostic, Report, Severity, Style};

/// How many lines of each kind one reload may add to the log.
const MAX_LINES: usize = 200;

/// One change that a reload made, or could not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub outcome: &'static str,
    pub what: String,
    pub detail: String,
}

impl Row {
    pub fn new(outcome: &'static str, what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { outcome, what: what.into(), detail: detail.into() }
    }
}

/// The change is in force.
pub const APPLIED: &str = "applied";
/// The option keeps its old value until a restart.
pub const NEEDS_RESTART: &str = "needs-restart";
/// The listener was opened.
pub const OPENED: &str = "opened";
/// The listener or address is no longer permitted and was closed or removed.
pub const CLOSED: &str = "closed";
/// The listener or address is no longer permitted and stays.
pub const KEPT: &str = "kept";
/// The listener is no longer static: it belongs to the worker.
pub const RELEASED: &str = "released";
/// The change failed.
pub const FAILED: &str = "failed";

/// The result of a reload.
pub enum Outcome {
    /// The configuration is in force.
    Done(Done),
    /// The configuration has errors; the old one stays in force.
    Refused(Report),
    /// The configuration could not be read or applied; the old one stays in force.
    Failed(Fault),
}

/// A configuration that was applied.
pub struct Done {
    /// What changed.
    pub rows: Vec<Row>,
    /// Warnings.
    pub report: Report,
    /// How many files were read.
    pub files: usize,
}

impl Outcome {
    /// The result as the message on the wire.
    pub fn to_wire(&self, number: u64, requester: &str) -> Reloaded {
        let empty = Report::default();
        let (accepted, files, rows, report) = match self {
            Outcome::Done(done) => (true, done.files, done.rows.as_slice(), &done.report),
            Outcome::Refused(report) => (false, 0, &[][..], report),
            Outcome::Failed(_) => (false, 0, &[][..], &empty),
        };
        let mut findings: Vec<Finding> = report.diagnostics().iter().map(finding).collect();
        if let Outcome::Failed(fault) = self {
            findings.push(failed(fault));
        }
        let all = findings.len() + report.omitted();
        let changes: List<Change, 64> = List::truncated(rows.iter().map(change));
        let findings: List<Finding, 16> = List::truncated(findings);
        Reloaded {
            number,
            age_ms: 0,
            requester: Text::truncated(requester),
            accepted,
            files: count(files),
            changes_omitted: count(rows.len() - changes.len()),
            changes,
            findings_omitted: count(all - findings.len()),
            findings,
        }
    }

    /// The fault for the peers that requested the reload.
    pub fn fault(&self) -> Fault {
        match self {
            Outcome::Failed(fault) => fault.clone(),
            Outcome::Refused(report) => refused(report),
            Outcome::Done(_) => Fault::new(FaultCode::Os, "nothing is wrong"),
        }
    }

    /// Whether the new configuration is in force.
    pub fn is_done(&self) -> bool {
        matches!(self, Outcome::Done(_))
    }

    /// The event for subscribers.
    pub fn event(&self) -> Event {
        match self {
            Outcome::Done(_) => Event { code: EventCode::Reloaded, ..Event::default() },
            Outcome::Refused(_) | Outcome::Failed(_) => Event {
                code: EventCode::ReloadFailed,
                detail: Text::truncated(&self.fault().message),
                ..Event::default()
            },
        }
    }

    /// Writes the result to the log.
    pub fn log(&self, requester: &str) {
        match self {
            Outcome::Done(done) => {
                let count_of = |outcome| done.rows.iter().filter(|row| row.outcome == outcome).count();
                let (applied, restart) = (count_of(APPLIED), count_of(NEEDS_RESTART));
                tracing::info!(target: "audit", requester, files = done.files, applied, restart, "reloaded");
                for Row { outcome, what, detail } in done.rows.iter().take(MAX_LINES) {
                    tracing::info!(outcome, what, detail, "reload");
                }
                for warning in done.report.one_lines().take(MAX_LINES) {
                    tracing::warn!("reload: {warning}");
                }
            }
            Outcome::Refused(report) => {
                let errors = errors(report);
                tracing::error!(target: "audit", requester, errors, "reload refused: the old configuration stays in force");
                for finding in report.one_lines().take(MAX_LINES) {
                    tracing::error!("reload: {finding}");
                }
            }
            Outcome::Failed(fault) => {
                let reason = &*fault.message;
                tracing::error!(target: "audit", requester, reason, "reload failed: the old configuration stays in force");
            }
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn errors(report: &Report) -> usize {
    let shown = report.diagnostics().iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
    shown.count() + report.omitted()
}

/// The first error, and how many more there are.
fn refused(report: &Report) -> Fault {
    let first = report.diagnostics().iter().find(|diagnostic| diagnostic.severity == Severity::Error);
    let Some(first) = first else {
        return Fault::new(FaultCode::Invalid, "the configuration has errors");
    };
    let more = match errors(report).saturating_sub(1) {
        0 => String::new(),
        more => format!(" (and {more} more: portreeve reload --last)"),
    };
    // Only the message is truncated, never the place or the count.
    let message: Text<380> = Text::truncated(&format!("{}: {}", first.place(), first.message));
    Fault::new(FaultCode::Invalid, &format!("{}{more}", &*message))
        .subject(&first.place())
        .remedy(&first.help)
}

fn change(row: &Row) -> Change {
    Change {
        outcome: Text::truncated(row.outcome),
        what: Text::truncated(&row.what),
        detail: Text::truncated(&row.detail),
    }
}

fn finding(diagnostic: &Diagnostic) -> Finding {
    Finding {
        severity: Text::truncated(diagnostic.severity.word()),
        file: Text::truncated(&diagnostic.file),
        line: count(diagnostic.line),
        column: count(diagnostic.column),
        end_line: count(diagnostic.end_line),
        end_column: count(diagnostic.end_column),
        message: Text::truncated(&diagnostic.message),
        help: Text::truncated(&diagnostic.help),
        rendered: Text::truncated(&diagnostic.render(Style::Plain)),
    }
}

fn failed(fault: &Fault) -> Finding {
    Finding {
        severity: Text::truncated("error"),
        file: Text::default(),
        line: 0,
        column: 0,
        end_line: 0,
        end_column: 0,
        message: Text::truncated(&fault.message),
        help: Text::truncated(&fault.remedy),
        rendered: Text::truncated(&fault.to_string()),
    }
}
