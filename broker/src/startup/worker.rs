//! The worker of the configuration: its program opened and checked, its words and environment as exec(3) takes them.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use crate::config::{Config, Span, Worker};
use crate::failure::{Exit, Failure};
use crate::launcher::{Command, ProgramName, program};
use crate::service::Supervision;

/// What the launcher is to start below this root, and how it is kept.
pub fn worker(
    config: &Config,
    worker: &Worker,
    root: Option<&OwnedFd>,
) -> Result<(Command, Supervision), Failure> {
    let Some(name) = worker.command.first() else {
        return Err(Failure::new(Exit::Config, "worker.command", "it is empty", "name a program"));
    };
    let c_string = |text: String, span: Span| {
        CString::new(text).map_err(|_| {
            let what = format!("{}: there is a zero byte in it", config.place(span));
            Failure::new(Exit::Config, "worker", what, "remove it")
        })
    };
    let arguments = worker.command.iter().map(|word| c_string(word.value.clone(), word.span));
    let environment = worker.environment.iter();
    let environment =
        environment.map(|(name, value)| c_string(format!("{}={}", name.value, value.value), value.span));
    let place = config.place(name.span);
    let program = ProgramName { path: name.value.clone(), place: place.clone() };
    let command = Command {
        program: program::open(&name.value, &place, root)?,
        name: program.clone(),
        arguments: arguments.collect::<Result<_, _>>()?,
        environment: environment.collect::<Result<_, _>>()?,
    };
    let supervision = Supervision {
        program,
        restart: worker.restart,
        stable_after: worker.stable_after,
        stop_timeout: worker.stop_timeout,
    };
    Ok((command, supervision))
}
