//! `portreeve exec`, which `portreeve listen` starts: executes the command in this process, which ends with its parent. The
//! variables of socket activation name a process, so the process itself sets them.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::sys::signal::SigSet;
use portreeve::socket_activation;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::failure::Failure;

#[derive(clap::Args)]
pub struct Arguments {
    /// The process that started this one.
    #[arg(long)]
    parent: i32,
    /// The name of each socket that was passed.
    #[arg(long)]
    name: Vec<String>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Returns only if the command cannot be executed.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let what = || "cannot end this command with its parent".to_owned();
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| Failure::System(what(), error.into()))?;
    if getppid() != Pid::from_raw(arguments.parent) {
        return Err(Failure::System(what(), io::Error::other("the parent has ended")));
    }
    let Some((program, rest)) = arguments.command.split_first() else { return Ok(ExitCode::FAILURE) };
    let mut command = Command::new(program);
    command.args(rest);
    if !arguments.name.is_empty() {
        command.envs(socket_activation::variables(&arguments.name));
    }
    let _ = SigSet::all().thread_unblock(); // the parent has blocked them; cannot fail for a valid set
    let error = command.exec();
    Err(Failure::System(format!("cannot run {:?}", program.to_string_lossy()), error))
}
