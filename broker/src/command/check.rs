//! `portreeved check`: reports all errors of a configuration in one run.

use std::path::PathBuf;
use std::process::ExitCode;

use super::output;
use crate::config::{self, Config, Report, Trust};
use crate::plan::{self, Draft, Findings, Root};
use crate::sys::process;

/// The arguments of `check`.
#[derive(Debug)]
pub struct Check {
    /// The configuration file.
    pub file: PathBuf,
    /// List the skipped scopes of the MTA.
    pub verbose: bool,
    /// Treat warnings as errors.
    pub strict: bool,
    /// Check the syntax only.
    pub syntax: bool,
    /// Print one JSON document.
    pub json: bool,
}

impl Check {
    /// Checks, prints, and returns the exit code.
    pub fn run(&self) -> ExitCode {
        let (config, report) = match self.syntax {
            // The result has no effect on the host, so the file's owner does not matter.
            true => (None, config::check_syntax(&self.file, Trust::Anyone).err().unwrap_or_default()),
            false => self.examine(),
        };
        let file = self.file.display().to_string();
        let ok = !(report.refuses() || self.strict && report.warns());
        if self.json {
            output::print_json(&output::findings(&file, &report, ok, config.as_ref()));
            return output::exit(&report, ok);
        }
        output::show(&report);
        if let Some(config) = config.filter(|_| self.verbose) {
            for name in &config.skipped {
                output::print(&format!(
                    "{}: {:?} belongs to the MTA and was skipped\n",
                    config.place(name.span),
                    name.value
                ));
            }
        }
        if ok {
            let verdict = if self.syntax { "valid syntax" } else { "valid" };
            output::print(&format!("{file}: {verdict}\n"));
        } else if !report.refuses() {
            output::print(&format!("{file}: refused, because --strict treats warnings as errors\n"));
        }
        output::exit(&report, ok)
    }

    fn examine(&self) -> (Option<Config>, Report) {
        let trust = Trust::RootOr(process::real_uid());
        let (config, read) = config::examine(&self.file, trust);
        let mut findings = Findings::of(read);
        if let Some(config) = &config {
            let draft = Draft::new(config, &mut findings);
            let identity = draft.identity.as_ref();
            let root = Root::open(config, identity, &mut findings);
            if let Some(worker) = &config.worker {
                plan::command(config, worker, &root, identity, &mut findings);
            }
            plan::survey(config, &root, &mut findings);
            plan::check_directories(config, &mut findings);
        }
        (config, findings.into_report())
    }
}
