//! `portreeved explain`: the effect of a configuration on this kernel, without starting anything: each process's
//! privileges, which peer is allowed which requests by which rule, and what a coordinator is told.

mod coordinator;
mod peers;
mod processes;
mod question;

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::output;
use crate::config::{self, Config, Diagnostic, Report, Trust};
use crate::failure::Failure;
use crate::log;
use crate::plan::{Findings, Plan};
use crate::reader;

use processes::Process;
pub use question::Question;

/// The arguments of `explain`.
#[derive(Debug)]
pub struct Explain {
    /// The configuration file.
    pub file: PathBuf,
    /// List every system call.
    pub verbose: bool,
    /// Print one JSON document.
    pub json: bool,
    /// Answer this question only.
    pub question: Option<Question>,
}

impl Explain {
    /// Explains and returns the exit code; for a question 0 if allowed, 1 if denied.
    pub fn run(&self) -> ExitCode {
        self.explain().unwrap_or_else(|failure| {
            if self.json {
                let diagnostic = Diagnostic::about_file(&self.name(), failure.to_string(), "");
                output::print_json(&output::findings(&self.name(), &diagnostic.into(), false, None));
            } else {
                log::fatal(failure.lines());
            }
            failure.exit()
        })
    }

    fn explain(&self) -> Result<ExitCode, Failure> {
        let trust = Trust::RootOr(crate::sys::process::real_uid());
        let (loaded, bundle) = config::record(&self.file, trust);
        let (config, warnings) = match loaded {
            Ok((config, warnings)) => (config, Findings::of(warnings.into())),
            Err(report) => return Ok(self.refuse(&report, None)),
        };
        match &self.question {
            Some(question) => self.answer(question, &config, warnings),
            None => self.explain_all(&config, &reader::directories(&bundle), warnings),
        }
    }

    fn refuse(&self, report: &Report, config: Option<&Config>) -> ExitCode {
        if self.json {
            output::print_json(&output::findings(&self.name(), report, false, config));
        } else {
            output::show(report);
        }
        output::exit(report, false)
    }

    fn name(&self) -> String {
        self.file.display().to_string()
    }

    fn answer(
        &self,
        question: &Question,
        config: &Config,
        mut findings: Findings,
    ) -> Result<ExitCode, Failure> {
        let Some(policy) = crate::plan::policy(config, &mut findings) else {
            return Ok(self.refuse(&findings.into_report(), Some(config)));
        };
        let answer = question.answer(&policy, config)?;
        match self.json {
            true => output::print_json(&answer.json(&self.name())),
            false => output::print(&answer.text()),
        }
        Ok(ExitCode::from(u8::from(!answer.is_allowed())))
    }

    fn explain_all(
        &self,
        config: &Config,
        directories: &[PathBuf],
        mut findings: Findings,
    ) -> Result<ExitCode, Failure> {
        let plan = Plan::new(config, &mut findings);
        let report = findings.into_report();
        let Ok(plan) = plan else {
            return Ok(self.refuse(&report, Some(config)));
        };
        let processes = processes::all(config, &plan, directories)?;
        let peers = peers::all(config, &plan.policy);
        let settings = plan.policy.cluster_settings();
        if self.json {
            let mut document = output::findings(&self.name(), &report, true, Some(config));
            let processes: Vec<_> = processes.iter().map(|process| process.json(self.verbose)).collect();
            let peers: Vec<_> = peers.iter().map(peers::Peer::json).collect();
            if let Some(document) = document.as_object_mut() {
                document.insert("processes".into(), processes.into());
                document.insert("peers".into(), peers.into());
                document.insert("coordinator".into(), coordinator::json(&settings));
                document.insert("tcp_ports".into(), json!(processes::ports(&plan.policy)));
            }
            output::print_json(&document);
        } else {
            output::show(&report);
            let mut parts = Process::tables(&processes, self.verbose);
            parts.extend(peers.iter().map(peers::Peer::text));
            parts.extend(coordinator::text(&settings));
            output::print(&parts.join("\n"));
        }
        Ok(ExitCode::SUCCESS)
    }
}
