//! The command line of `portreeved`.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::ValueExt as _;
use lexopt::prelude::{Long, Short, Value};

use crate::command::{self, Check, Explain, Question};
use crate::failure::{Exit, Failure};
use crate::log;
use crate::startup::{self, Start};

/// The configuration file by default.
const DEFAULT_CONFIG: &str = "/etc/portreeve/portreeve.conf";

pub(crate) const HELP: &str = "\
portreeved: privileged helper that opens sockets and manages addresses for unprivileged daemons

Usage:
  portreeved [--config FILE]                run in the foreground (as root)
  portreeved --takeover [--config FILE]     replace the running broker; listeners stay open. Refused if systemd or
                                            another program supervises that broker, unless --takeover=force
  portreeved check [FILE]                   report all errors of a configuration
  portreeved explain [FILE]                 show each process's privileges and what each peer is allowed
  portreeved explain [FILE] listen ENDPOINT show whether a peer is allowed to listen there, and the rule
  portreeved explain [FILE] address IP      show whether a peer is allowed that address, and the rule

Only the first two need root. The others change nothing. Without FILE they examine the default file.

Options:
  -c, --config FILE  the configuration file [default: /etc/portreeve/portreeve.conf]
      --log-format F text, json or journald [default: journald if standard error is the journal, else text]
      --strict       check: treat warnings as errors
      --notify-fd N  write a newline to descriptor N when the broker serves, and close it (s6, dinit)
      --syntax       check: check only the syntax of this file; includes are not read
      --json         check, explain: print one JSON document on standard output
  -v, --verbose      check: list the MTA's scopes, which are skipped
                     explain: list every system call that the broker is allowed, and its purpose
      --as USER      explain listen, explain address: the peer, a user's name or number [default: worker]
  -h, --help         show this help
  -V, --version      show the version

Errors and warnings go to standard error, in colour on a terminal unless NO_COLOR is set.

Exit codes (sysexits.h): 64 usage error, 66 file cannot be read, 67 unknown user or group, 69 resource in use or
unavailable, 71 system call failed, 72 system file is wrong, 73 file cannot be created, 77 permission denied,
78 configuration error. explain listen and explain address exit with 0 for allowed and 1 for denied.
";

#[derive(Debug)]
enum Action {
    Run(PathBuf, Start, Option<log::Format>, Option<RawFd>),
    Check(Check),
    Explain(Explain),
    Print(String),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let result = match parse(lexopt::Parser::from_env()) {
        Ok(Action::Print(text)) => {
            command::print(&text);
            Ok(ExitCode::SUCCESS)
        }
        Ok(Action::Check(check)) => Ok(check.run()),
        Ok(Action::Explain(explain)) => Ok(explain.run()),
        Ok(Action::Run(file, start, format, ready_descriptor)) => {
            let result = startup::run(&file, start, format, ready_descriptor);
            log::finish();
            result.map(|()| ExitCode::SUCCESS)
        }
        Err(error) => Err(Failure::new(Exit::Usage, "usage", error, "see portreeved --help")),
    };
    result.unwrap_or_else(|failure| {
        log::fatal(failure.lines());
        failure.exit()
    })
}

/// The options of all commands; each command accepts some of them.
#[derive(Default)]
struct Options {
    config: Option<PathBuf>,
    /// Whether it is forced.
    takeover: Option<bool>,
    verbose: bool,
    strict: bool,
    syntax: bool,
    json: bool,
    peer: Option<String>,
    log_format: Option<log::Format>,
    notify_fd: Option<RawFd>,
}

impl Options {
    /// Refuses an option that the command does not accept.
    fn accept_only(&self, command: &str, accepted: &[&str]) -> Result<(), lexopt::Error> {
        let given = [
            ("--config", self.config.is_some()),
            ("--takeover", self.takeover.is_some()),
            ("--verbose", self.verbose),
            ("--strict", self.strict),
            ("--syntax", self.syntax),
            ("--json", self.json),
            ("--as", self.peer.is_some()),
            ("--log-format", self.log_format.is_some()),
            ("--notify-fd", self.notify_fd.is_some()),
        ];
        match given.iter().find(|(name, given)| *given && !accepted.contains(name)) {
            Some((name, _)) => Err(format!("{command} does not accept {name}").into()),
            None => Ok(()),
        }
    }
}

fn parse(mut parser: lexopt::Parser) -> Result<Action, lexopt::Error> {
    let mut options = Options::default();
    let mut words: Vec<OsString> = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Action::Print(HELP.to_owned())),
            Short('V') | Long("version") => {
                return Ok(Action::Print(concat!("portreeved ", env!("CARGO_PKG_VERSION"), "\n").to_owned()));
            }
            Short('c') | Long("config") => options.config = Some(parser.value()?.into()),
            Short('v') | Long("verbose") => options.verbose = true,
            Long("strict") => options.strict = true,
            Long("takeover") => {
                options.takeover = match parser.optional_value() {
                    None => Some(false),
                    Some(word) if word == "force" => Some(true),
                    Some(word) => return Err(format!("--takeover takes no value but force: {word:?}").into()),
                };
            }
            Long("syntax") => options.syntax = true,
            Long("json") => options.json = true,
            Long("log-format") => options.log_format = Some(parser.value()?.parse()?),
            Long("notify-fd") => options.notify_fd = Some(parser.value()?.parse()?),
            Long("as") => options.peer = Some(parser.value()?.string()?),
            Value(word) => words.push(word),
            other => return Err(other.unexpected()),
        }
    }
    action(&words, options)
}

fn action(words: &[OsString], options: Options) -> Result<Action, lexopt::Error> {
    match words {
        [] => {
            options.accept_only(
                "portreeved without a command",
                &["--config", "--takeover", "--log-format", "--notify-fd"],
            )?;
            let start = options.takeover.map_or(Start::Fresh, |force| Start::Takeover { force });
            let file = options.config.unwrap_or_else(|| DEFAULT_CONFIG.into());
            Ok(Action::Run(file, start, options.log_format, options.notify_fd))
        }
        [verb, files @ ..] if verb == "check" => {
            options.accept_only("check", &["--config", "--verbose", "--strict", "--syntax", "--json"])?;
            let Options { config, verbose, strict, syntax, json, .. } = options;
            let file = one_file("check", files, config)?;
            Ok(Action::Check(Check { file, verbose, strict, syntax, json }))
        }
        [verb, files @ .., what, object] if verb == "explain" => {
            options.accept_only("a question", &["--config", "--json", "--as"])?;
            let text = |word: &OsString| word.clone().into_string().map_err(lexopt::Error::NonUnicodeValue);
            let question = Question::parse(&text(what)?, &text(object)?, options.peer)?;
            let (file, json) = (one_file("explain", files, options.config)?, options.json);
            Ok(Action::Explain(Explain { file, verbose: false, json, question: Some(question) }))
        }
        [verb, files @ ..] if verb == "explain" => {
            options.accept_only("explain", &["--config", "--verbose", "--json"])?;
            let Options { config, verbose, json, .. } = options;
            let file = one_file("explain", files, config)?;
            Ok(Action::Explain(Explain { file, verbose, json, question: None }))
        }
        [verb, ..] => Err(format!("unknown command {verb:?}").into()),
    }
}

/// The file that a command is about: its argument, the value of --config, or the default.
fn one_file(command: &str, files: &[OsString], config: Option<PathBuf>) -> Result<PathBuf, lexopt::Error> {
    match (files, config) {
        ([], config) => Ok(config.unwrap_or_else(|| DEFAULT_CONFIG.into())),
        ([file], None) => Ok(file.into()),
        _ => Err(format!("{command} takes one FILE").into()),
    }
}
