//! The command line of `portreeved`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::prelude::{Long, Short, Value};

use crate::config::{self, Trust};
use crate::failure::{Exit, Failure};
use crate::plan::{self, Plan};
use crate::{log, startup};

/// Where the configuration is when nobody says.
const DEFAULT_CONFIG: &str = "/etc/portreeve/portreeve.conf";

const HELP: &str = "\
portreeved: keeps a few of root's powers and lends, by policy, what they make

Usage:
  portreeved [--config FILE]   run in the foreground (as root)
  portreeved check FILE        say what is wrong with a configuration, and change nothing

Options:
  -c, --config FILE  the configuration [default: /etc/portreeve/portreeve.conf]
  -v, --verbose      check: name the scopes that are skipped because they are the MTA's
  -h, --help         this text
  -V, --version      the release

Exit codes are those of sysexits(3): 64 wrong usage, 66 a file that cannot be read, 67 an unknown user or
group, 69 something is taken, 71 the kernel refused, 77 not allowed, 78 wrong configuration.
";

enum Action {
    Run(PathBuf),
    Check { file: PathBuf, verbose: bool },
    Print(String),
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let done = match parse(lexopt::Parser::from_env()) {
        Ok(Action::Print(text)) => {
            print!("{text}");
            Ok(())
        }
        Ok(Action::Check { file, verbose }) => return check(&file, verbose),
        Ok(Action::Run(file)) => {
            log::begin();
            let ended = startup::run(&file);
            log::flush();
            ended
        }
        Err(error) => Err(Failure::new(Exit::Usage, "usage", error, "see portreeved --help")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            failure.exit()
        }
    }
}

fn parse(mut parser: lexopt::Parser) -> Result<Action, lexopt::Error> {
    let (mut config, mut verbose) = (PathBuf::from(DEFAULT_CONFIG), false);
    let mut words: Vec<OsString> = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Action::Print(HELP.to_owned())),
            Short('V') | Long("version") => {
                return Ok(Action::Print(concat!("portreeved ", env!("CARGO_PKG_VERSION"), "\n").to_owned()));
            }
            Short('c') | Long("config") => config = parser.value()?.into(),
            Short('v') | Long("verbose") => verbose = true,
            Value(word) => words.push(word),
            other => return Err(other.unexpected()),
        }
    }
    match words.as_slice() {
        [] => Ok(Action::Run(config)),
        [verb, file] if verb == "check" => Ok(Action::Check { file: file.into(), verbose }),
        [verb, ..] if verb == "check" => Err("check takes one file".into()),
        [verb, ..] => Err(format!("there is no command {verb:?}").into()),
    }
}

fn check(file: &Path, verbose: bool) -> ExitCode {
    let trust = Trust::RootOr(nix::unistd::getuid().as_raw());
    let (config, warnings) = match config::load(file, trust) {
        Ok(loaded) => loaded,
        Err(report) => {
            eprintln!("{report}");
            return ExitCode::from(Exit::Config as u8);
        }
    };
    let checked = Plan::new(&config, &warnings).and_then(|plan| {
        plan::open_chroot(&config, &plan.identity)?;
        Ok(plan)
    });
    match checked {
        Ok(plan) => {
            for warning in &plan.warnings {
                eprintln!("{warning}");
            }
            if verbose {
                for name in &config.skipped {
                    println!("{}: {} is the MTA's and was skipped", config.place(name.span), name.value);
                }
            }
            println!("{}: good", file.display());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            failure.tell();
            ExitCode::from(Exit::Config as u8)
        }
    }
}
