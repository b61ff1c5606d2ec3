//! A broker that turned against its host, for tests only: it starts as any broker does, but for one step that fails or
//! for locks that it leaves out, and when it is confined it attacks instead of serving.
//!
//! Promises: no release has this; a build without debug assertions does not compile with it. Touches, where the locks
//! that are left let it, what each attack names.

mod call;
mod files;
mod network;
mod powers;
mod processes;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use lexopt::prelude::{Long, ValueExt as _};

use crate::failure::{Exit, Failure};
use crate::log;
use crate::startup::{self, Start};

#[cfg(not(debug_assertions))]
compile_error!("the feature hostile is for tests and cannot be built without debug assertions");

/// What a test asks for.
#[derive(Debug, Default)]
struct Choice {
    config: PathBuf,
    start: Start,
    fail: Option<String>,
    kill: Option<String>,
    stall: Option<String>,
    omit: Vec<String>,
    attack: Option<String>,
}

static CHOICE: OnceLock<Choice> = OnceLock::new();

/// One attack: what it is called, and the attempt. An error that says "not allowed", "not there" or "no such call" is a defence; any
/// other means that the kernel would have let it, had the arguments been real.
struct Attack {
    name: &'static str,
    attempt: fn() -> nix::Result<i64>,
}

fn attacks() -> impl Iterator<Item = &'static Attack> {
    [processes::ATTACKS, powers::ATTACKS, files::ATTACKS, network::ATTACKS].into_iter().flatten()
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
    let ended = startup::run(&choice.config, choice.start, None);
    log::finish();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            failure.exit()
        }
    }
}

fn parse(mut parser: lexopt::Parser) -> Result<Option<Choice>, lexopt::Error> {
    let mut choice = Choice::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => choice.config = parser.value()?.into(),
            Long("takeover") => choice.start = Start::Takeover,
            Long("fail") => choice.fail = Some(parser.value()?.string()?),
            Long("kill") => choice.kill = Some(parser.value()?.string()?),
            Long("stall") => choice.stall = Some(parser.value()?.string()?),
            Long("omit") => choice.omit.push(parser.value()?.string()?),
            Long("attack") => choice.attack = Some(parser.value()?.string()?),
            Long("list-attacks") => {
                attacks().for_each(|attack| println!("{}", attack.name));
                return Ok(None);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(choice))
}

/// Fails where the test wants this step to fail, is killed, or goes no further.
pub fn point(name: &'static str) -> Result<(), Failure> {
    let is = |step: &Option<String>| step.as_deref() == Some(name);
    if CHOICE.get().is_some_and(|choice| is(&choice.kill)) {
        let _it_cannot_fail = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
    while CHOICE.get().is_some_and(|choice| is(&choice.stall)) {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    match CHOICE.get().and_then(|choice| choice.fail.as_deref()) {
        Some(fail) if fail == name => Err(Failure::new(Exit::OsError, name, "it was made to fail", "none")),
        _ => Ok(()),
    }
}

/// Whether this lock is put on. With any of them left out, what is verified is not what was configured.
pub fn lock(name: &'static str) -> Result<bool, Failure> {
    point(name)?;
    let omitted = CHOICE.get().map(|choice| choice.omit.as_slice()).unwrap_or_default();
    Ok(if name == "verify" { omitted.is_empty() } else { !omitted.iter().any(|lock| lock == name) })
}

/// Attacks, and ends: there is one attack a broker, so that one which ends the process hides no other.
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
    let _nowhere_to_say_so = writeln!(std::io::stdout(), "{line}");
}
