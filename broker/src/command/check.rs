//! `portreeved check`: everything that is wrong with a configuration, in one run.

use std::path::PathBuf;
use std::process::ExitCode;

use super::output;
use crate::config::{self, Config, Report, Trust};
use crate::plan::{self, Draft, Findings, Root};

/// What is to be checked, and how it is told.
#[derive(Debug)]
pub struct Check {
    /// The configuration's file.
    pub file: PathBuf,
    /// Name what is skipped because it is the MTA's.
    pub verbose: bool,
    /// Only whether the text is well formed.
    pub syntax: bool,
    /// As one JSON document.
    pub json: bool,
}

impl Check {
    /// Checks, tells, and gives the exit code.
    pub fn run(&self) -> ExitCode {
        let (config, report) = match self.syntax {
            // It decides nothing, so it matters to nobody who may write it.
            true => (None, config::check_syntax(&self.file, Trust::Anyone).err().unwrap_or_default()),
            false => self.examine(),
        };
        let file = self.file.display().to_string();
        if self.json {
            output::print_json(&output::findings(&file, &report, config.as_ref()));
            return output::exit(&report);
        }
        output::show(&report);
        if let Some(config) = config.filter(|_| self.verbose) {
            for name in &config.skipped {
                output::print(&format!(
                    "{}: {:?} is the MTA's and was skipped\n",
                    config.place(name.span),
                    name.value
                ));
            }
        }
        if !report.refuses() {
            let verdict = if self.syntax { "well formed" } else { "good" };
            output::print(&format!("{file}: {verdict}\n"));
        }
        output::exit(&report)
    }

    fn examine(&self) -> (Option<Config>, Report) {
        let trust = Trust::RootOr(nix::unistd::getuid().as_raw());
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
