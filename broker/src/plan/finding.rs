//! Findings made while a plan is built: `check` shows all of them, a start fails for the first error.

use crate::config::{Config, Diagnostic, Report, Severity, Span};
use crate::failure::{Exit, Failure};
use crate::sys::process;

/// One finding and, for an error, the exit code of a start.
#[derive(Debug)]
struct Finding {
    step: &'static str,
    exit: Exit,
    diagnostic: Diagnostic,
}

/// Findings in order.
#[derive(Debug, Default)]
pub struct Findings {
    parsed: Report,
    findings: Vec<Finding>,
}

impl Findings {
    /// Starts with the diagnostics of the parser.
    pub fn of(parsed: Report) -> Self {
        Self { parsed, findings: Vec::new() }
    }

    /// Whether a missing option can be treated as its default: not if the configuration has an error.
    pub fn trusts_defaults(&self) -> bool {
        !self.parsed.refuses()
    }

    /// Adds an error with the exit code of a start.
    pub fn error(&mut self, step: &'static str, exit: Exit, diagnostic: Diagnostic) {
        self.findings.push(Finding { step, exit, diagnostic });
    }

    /// Adds a warning or a note.
    pub fn add(&mut self, diagnostic: Diagnostic) {
        self.findings.push(Finding { step: "", exit: Exit::Config, diagnostic });
    }

    /// Adds a warning that the checking user has no permission to examine something.
    pub fn no_permission(&mut self, config: &Config, span: Span, what: &str) {
        let message = format!("{what} cannot be examined by user {}", process::effective_uid());
        self.add(config.warning(span, message, "run the check as root"));
    }

    /// The failure of a start: the first error.
    pub fn first_failure(&self) -> Option<Failure> {
        let error = |finding: &&Finding| finding.diagnostic.severity == Severity::Error;
        self.findings.iter().find(error).map(|Finding { step, exit, diagnostic }| {
            let problem = format_args!("{}: {}", diagnostic.place(), diagnostic.message);
            Failure::new(*exit, step, problem, &diagnostic.help)
        })
    }

    /// The failure of a start that cannot continue.
    pub fn failure(&self) -> Failure {
        self.first_failure().unwrap_or_else(|| {
            let remedy = "report this as a bug of portreeved";
            Failure::new(Exit::Config, "config", "the start failed without a diagnostic", remedy)
        })
    }

    /// Warnings and notes for the log at the start, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let parsed = self.parsed.diagnostics().iter();
        let all = parsed.chain(self.findings.iter().map(|finding| &finding.diagnostic));
        all.filter(|diagnostic| diagnostic.severity == Severity::Warning).map(Diagnostic::one_line).collect()
    }

    /// All findings, in the order of the files.
    pub fn into_report(self) -> Report {
        let Self { mut parsed, findings } = self;
        parsed.extend(findings.into_iter().map(|finding| finding.diagnostic));
        parsed
    }
}

/// Whether the error is only missing permission of the checking user.
pub fn is_permission_denied(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::PermissionDenied && process::effective_uid() != 0
}
