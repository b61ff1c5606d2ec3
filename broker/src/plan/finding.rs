//! What is found on the way from a configuration to a plan: all of it for `check`, the first error for a start.

use crate::config::{Config, Diagnostic, Report, Severity, Span};
use crate::failure::{Exit, Failure};

/// One finding, and how a start fails for it where it is an error.
#[derive(Debug)]
struct Finding {
    step: &'static str,
    exit: Exit,
    diagnostic: Diagnostic,
}

/// Findings in the order in which they are made.
#[derive(Debug, Default)]
pub struct Findings {
    read: Report,
    found: Vec<Finding>,
}

impl Findings {
    /// Those of reading, to which a plan adds its own.
    pub fn of(read: Report) -> Self {
        Self { read, found: Vec::new() }
    }

    /// Whether what the configuration does not say is meant so: with a mistake in it, who knows.
    pub fn trusts_defaults(&self) -> bool {
        !self.read.refuses()
    }

    /// Notes what refuses the configuration, and how a start ends for it.
    pub fn error(&mut self, step: &'static str, exit: Exit, diagnostic: Diagnostic) {
        self.found.push(Finding { step, exit, diagnostic });
    }

    /// Notes a warning or a note, which no start fails for.
    pub fn tell(&mut self, diagnostic: Diagnostic) {
        self.found.push(Finding { step: "", exit: Exit::Config, diagnostic });
    }

    /// Notes that something cannot be judged, because the user who checks may not look at it.
    pub fn unseen(&mut self, config: &Config, span: Span, what: &str) {
        let message = format!("{what} cannot be looked at by user {}", nix::unistd::geteuid());
        self.tell(config.warning(span, message, "run the check as root, as portreeved will see it"));
    }

    /// How a start ends: by the first error.
    pub fn first_failure(&self) -> Option<Failure> {
        let error = |finding: &&Finding| finding.diagnostic.severity == Severity::Error;
        self.found.iter().find(error).map(|Finding { step, exit, diagnostic }| {
            let what = format_args!("{}: {}", diagnostic.place(), diagnostic.message);
            Failure::new(*exit, step, what, &diagnostic.help)
        })
    }

    /// How a start ends that cannot go on.
    pub fn failure(&self) -> Failure {
        self.first_failure().unwrap_or_else(|| {
            let remedy = "report it: this is a mistake of portreeved";
            Failure::new(Exit::Config, "config", "it cannot be started from, and nothing says why", remedy)
        })
    }

    /// What an operator should know at a start, a line each.
    pub fn warnings(&self) -> Vec<String> {
        let read = self.read.diagnostics().iter();
        let all = read.chain(self.found.iter().map(|finding| &finding.diagnostic));
        all.filter(|found| found.severity == Severity::Warning).map(Diagnostic::one_line).collect()
    }

    /// Everything, in the order of the files.
    pub fn into_report(self) -> Report {
        let Self { mut read, found } = self;
        read.extend(found.into_iter().map(|finding| finding.diagnostic));
        read
    }
}

/// Whether only the user who checks is in the way, and not the file.
pub fn only_root_may(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::PermissionDenied && !nix::unistd::geteuid().is_root()
}
