//! What came of a reload: rows for whoever asked, lines for the log.

use portreeve_protocol::event::{Event, EventCode};
use portreeve_protocol::reload::{Change, Finding, Reloaded};
use portreeve_protocol::{Fault, FaultCode, List, Text};

use crate::config::{Diagnostic, Report, Severity, Style};

/// Lines that one reload may add to the log.
const LINES: usize = 200;

/// One thing that a reload changed, or did not.
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

/// It is in force.
pub const APPLIED: &str = "applied";
/// It keeps its old value.
pub const NEEDS_RESTART: &str = "needs-restart";
/// A listener that is there now.
pub const OPENED: &str = "opened";
/// A listener or address that is outside the policy now and was stopped.
pub const CLOSED: &str = "closed";
/// One that is outside it and goes on.
pub const KEPT: &str = "kept";
/// A static listener that is its worker's own now.
pub const RELEASED: &str = "released";
/// What should have been done and could not.
pub const FAILED: &str = "failed";

/// What came of a reload.
pub enum Outcome {
    /// The configuration is in force.
    Done(Done),
    /// It is wrong, and the old one stays.
    Refused(Report),
    /// It could not be read, or not be put in force, and the old one stays.
    Failed(Fault),
}

/// What a reload did.
pub struct Done {
    /// What changed.
    pub rows: Vec<Row>,
    /// Warnings.
    pub report: Report,
    /// How many files were read.
    pub files: usize,
}

impl Outcome {
    /// As the wire has it.
    pub fn told(&self, number: u64, by: &str) -> Reloaded {
        let nothing = Report::default();
        let (accepted, files, rows, report) = match self {
            Outcome::Done(done) => (true, done.files, done.rows.as_slice(), &done.report),
            Outcome::Refused(report) => (false, 0, &[][..], report),
            Outcome::Failed(_) => (false, 0, &[][..], &nothing),
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
            requester: Text::truncated(by),
            accepted,
            files: count(files),
            changes_omitted: count(rows.len() - changes.len()),
            changes,
            findings_omitted: count(all - findings.len()),
            findings,
        }
    }

    /// As a fault, where it is one.
    pub fn fault(&self) -> Fault {
        match self {
            Outcome::Failed(fault) => fault.clone(),
            Outcome::Refused(report) => refused(report),
            Outcome::Done(_) => Fault::new(FaultCode::Os, "nothing is wrong"),
        }
    }

    /// As who subscribes is told of it.
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

    /// Writes it into the log.
    pub fn log(&self, by: &str) {
        match self {
            Outcome::Done(done) => {
                let of = |outcome| done.rows.iter().filter(|row| row.outcome == outcome).count();
                let (applied, restart) = (of(APPLIED), of(NEEDS_RESTART));
                tracing::info!(target: "audit", by, files = done.files, applied, restart, "reloaded");
                for Row { outcome, what, detail } in done.rows.iter().take(LINES) {
                    tracing::info!(outcome, ?what, ?detail, "reload");
                }
                for warning in done.report.one_lines().take(LINES) {
                    tracing::warn!(?warning);
                }
            }
            Outcome::Refused(report) => {
                let errors = errors(report);
                tracing::error!(target: "audit", by, errors, "reload refused: the configuration stays as it was");
                for finding in report.one_lines().take(LINES) {
                    tracing::error!(?finding, "reload");
                }
            }
            Outcome::Failed(fault) => {
                let why = &*fault.message;
                tracing::error!(target: "audit", by, ?why, "reload failed: the configuration stays as it was");
            }
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn errors(report: &Report) -> usize {
    let shown = report.diagnostics().iter().filter(|found| found.severity == Severity::Error);
    shown.count() + report.omitted()
}

/// The first mistake, and how many there are besides.
fn refused(report: &Report) -> Fault {
    let first = report.diagnostics().iter().find(|found| found.severity == Severity::Error);
    let Some(first) = first else {
        return Fault::new(FaultCode::Invalid, "the configuration is refused");
    };
    let more = match errors(report).saturating_sub(1) {
        0 => String::new(),
        more => format!(" (and {more} more: portreeve reload --last)"),
    };
    // What is cut is the message, never its place or the count.
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

fn finding(found: &Diagnostic) -> Finding {
    Finding {
        severity: Text::truncated(found.severity.word()),
        file: Text::truncated(&found.file),
        line: count(found.line),
        column: count(found.column),
        end_line: count(found.end_line),
        end_column: count(found.end_column),
        message: Text::truncated(&found.message),
        help: Text::truncated(&found.help),
        rendered: Text::truncated(&found.render(Style::Plain)),
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
