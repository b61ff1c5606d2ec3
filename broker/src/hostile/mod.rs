//! A malicious broker, for tests only. It starts like any broker, except that one step fails or some restrictions are
//! omitted, and when it is confined it attacks the host instead of serving.
//!
//! Promises: no release contains this module: it does not compile without debug assertions. Touches what each attack names,
//! as far as the applied restrictions allow.

mod call;
mod files;
mod network;
mod privileges;
mod processes;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use lexopt::prelude::{Long, ValueExt as _};

use crate::command::Explain;
use crate::failure::{Exit, Failure};
use crate::log;
use crate::startup::{self, Start};

#[cfg(not(debug_assertions))]
compile_error!("the feature hostile is for tests and cannot be built without debug assertions");

/// The test's request.
#[derive(Debug, Default)]
struct Choice {
    config: PathBuf,
    start: Start,
    fail: Option<String>,
    kill: Option<String>,
    stall: Option<String>,
    omit: Vec<String>,
    attack: Option<String>,
    hide_seccomp: bool,
    explain: bool,
}

static CHOICE: OnceLock<Choice> = OnceLock::new();
/// SIGUSR1 has ended `--stall`.
static CONTINUED: AtomicBool = AtomicBool::new(false);

extern "C" fn end_stall(_: i32) {
    CONTINUED.store(true, Ordering::Relaxed);
}

/// One attack: its name and the attempt. EPERM, EACCES, ENOENT or ENOSYS means that it was prevented; any other error means
/// that the kernel would have allowed it with valid arguments.
struct Attack {
    name: &'static str,
    attempt: fn() -> nix::Result<i64>,
}

fn attacks() -> impl Iterator<Item = &'static Attack> {
    [processes::ATTACKS, privileges::ATTACKS, files::ATTACKS, network::ATTACKS].into_iter().flatten()
}

/// The hostile broker's command line.
pub fn main() -> ExitCode {
    let choice = match parse(lexopt::Parser::from_env()) {
        Ok(Some(choice)) => choice,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(Exit::Usage as u8);
        }
    };
    let choice = CHOICE.get_or_init(|| choice);
    if choice.explain {
        let file = choice.config.clone();
        return Explain { file, verbose: false, json: true, question: None }.run();
    }
    let end_stall = nix::sys::signal::SigHandler::Handler(end_stall);
    // SAFETY: the handler only stores a value in an atomic variable.
    let _ = unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGUSR1, end_stall) };
    let result = startup::run(&choice.config, choice.start, None, None);
    log::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log::fatal(failure.lines());
            failure.exit()
        }
    }
}

fn parse(mut parser: lexopt::Parser) -> Result<Option<Choice>, lexopt::Error> {
    let mut choice = Choice::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => choice.config = parser.value()?.into(),
            Long("takeover") => choice.start = Start::Takeover { force: false },
            Long("fail") => choice.fail = Some(parser.value()?.string()?),
            Long("kill") => choice.kill = Some(parser.value()?.string()?),
            Long("stall") => choice.stall = Some(parser.value()?.string()?),
            Long("omit") => choice.omit.push(parser.value()?.string()?),
            Long("attack") => choice.attack = Some(parser.value()?.string()?),
            Long("hide-seccomp") => choice.hide_seccomp = true,
            Long("explain") => choice.explain = true,
            Long("list-attacks") => {
                attacks().for_each(|attack| println!("{}", attack.name));
                return Ok(None);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(choice))
}

/// Fails, is killed or stops at this step if the test requests it.
pub fn point(name: &'static str) -> Result<(), Failure> {
    let is = |step: &Option<String>| step.as_deref() == Some(name);
    if CHOICE.get().is_some_and(|choice| is(&choice.kill)) {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
    while CHOICE.get().is_some_and(|choice| is(&choice.stall)) && !CONTINUED.load(Ordering::Relaxed) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    match CHOICE.get().and_then(|choice| choice.fail.as_deref()) {
        Some(fail) if fail == name => Err(Failure::new(Exit::OsError, name, "it was made to fail", "none")),
        _ => Ok(()),
    }
}

/// Whether this restriction is applied. If one is omitted, the verification is adapted.
pub fn lock(name: &'static str) -> Result<bool, Failure> {
    point(name)?;
    let omitted = CHOICE.get().map(|choice| choice.omit.as_slice()).unwrap_or_default();
    Ok(if name == "verify" { omitted.is_empty() } else { !omitted.iter().any(|lock| lock == name) })
}

/// Whether the kernel has seccomp if /proc/self/status says so. A test hides it to simulate a kernel without seccomp, which
/// also lacks the line.
pub fn kernel_has_seccomp() -> bool {
    !CHOICE.get().is_some_and(|choice| choice.hide_seccomp)
}

/// Runs the attack and ends. Each broker runs one attack, so that one which ends the process does not hide another.
pub fn confined() {
    let Some(name) = CHOICE.get().and_then(|choice| choice.attack.as_deref()) else {
        return;
    };
    let Some(attack) = attacks().find(|attack| attack.name == name) else {
        say("unknown");
        std::process::exit(i32::from(Exit::Usage as u8));
    };
    say("attacking");
    use nix::errno::Errno;
    match (attack.attempt)() {
        Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::ENOENT | Errno::EROFS | Errno::ENOSYS)) => {
            say(&format!("held {errno:?}"));
        }
        Ok(_) => say("done"),
        Err(errno) => say(&format!("done but for {errno:?}")),
    }
    std::process::exit(0);
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}"); // the test may have closed the pipe
}
