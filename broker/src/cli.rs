//! The command line of `portreeved`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::ValueExt as _;
use lexopt::prelude::{Long, Short, Value};

use crate::command::{self, Check, Explain, Question};
use crate::failure::{Exit, Failure};
use crate::log;
use crate::startup::{self, Start};

/// Where the configuration is when nobody says.
const DEFAULT_CONFIG: &str = "/etc/portreeve/portreeve.conf";

pub(crate) const HELP: &str = "\
portreeved: keeps a few of root's powers and lends, by policy, what they make

Usage:
  portreeved [--config FILE]                run in the foreground (as root)
  portreeved --takeover [--config FILE]     the same, in place of the broker that runs: no listener closes
  portreeved check FILE                     say everything that is wrong with a configuration
  portreeved explain FILE                   say what each process will hold, and who may ask for what
  portreeved explain FILE listen ENDPOINT   may somebody listen there, and by which rule
  portreeved explain FILE address IP        may somebody have that address, and by which rule

Only the first two need root; the others change nothing.

Options:
  -c, --config FILE  the configuration [default: /etc/portreeve/portreeve.conf]
      --log-format F text, json or journald [default: journald where standard error is the journal, else text]
      --syntax       check: only whether the text is well formed, whatever it means; includes are not read
      --json         check, explain: one JSON document on standard output
  -v, --verbose      check: name the scopes that are skipped because they are the MTA's
                     explain: name every system call that the broker may make, and what for
      --as USER      explain listen, explain address: who asks, a user's name or number [default: worker]
  -h, --help         this text
  -V, --version      the release

Findings go to standard error, in colour on a terminal unless NO_COLOR is set.

Exit codes are those of sysexits(3): 64 wrong usage, 66 a file that cannot be read, 67 an unknown user or
group, 69 something is taken or gone, 71 the kernel refused, 72 a file of the system is not as it must be, 73 a
file cannot be made, 77 not allowed, 78 wrong configuration. A question to explain ends with 0 for yes and 1
for no.
";

#[derive(Debug)]
enum Action {
    Run(PathBuf, Start, Option<log::Format>),
    Check(Check),
    Explain(Explain),
    Print(String),
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let done = match parse(lexopt::Parser::from_env()) {
        Ok(Action::Print(text)) => {
            command::print(&text);
            Ok(ExitCode::SUCCESS)
        }
        Ok(Action::Check(check)) => Ok(check.run()),
        Ok(Action::Explain(explain)) => Ok(explain.run()),
        Ok(Action::Run(file, start, format)) => {
            let ended = startup::run(&file, start, format);
            log::finish();
            ended.map(|()| ExitCode::SUCCESS)
        }
        Err(error) => Err(Failure::new(Exit::Usage, "usage", error, "see portreeved --help")),
    };
    done.unwrap_or_else(|failure| {
        failure.tell();
        failure.exit()
    })
}

/// The options of every command; each command takes some.
#[derive(Default)]
struct Options {
    config: Option<PathBuf>,
    takeover: bool,
    verbose: bool,
    syntax: bool,
    json: bool,
    by: Option<String>,
    log_format: Option<log::Format>,
}

impl Options {
    /// Refuses the first that is given and not among those that the command takes.
    fn only(&self, command: &str, taken: &[&str]) -> Result<(), lexopt::Error> {
        let given = [
            ("--config", self.config.is_some()),
            ("--takeover", self.takeover),
            ("--verbose", self.verbose),
            ("--syntax", self.syntax),
            ("--json", self.json),
            ("--as", self.by.is_some()),
            ("--log-format", self.log_format.is_some()),
        ];
        match given.iter().find(|(name, given)| *given && !taken.contains(name)) {
            Some((name, _)) => Err(format!("{name} means nothing to {command}").into()),
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
            Long("takeover") => options.takeover = true,
            Long("syntax") => options.syntax = true,
            Long("json") => options.json = true,
            Long("log-format") => options.log_format = Some(parser.value()?.parse()?),
            Long("as") => options.by = Some(parser.value()?.string()?),
            Value(word) => words.push(word),
            other => return Err(other.unexpected()),
        }
    }
    action(&words, options)
}

fn action(words: &[OsString], options: Options) -> Result<Action, lexopt::Error> {
    match words {
        [] => {
            options.only("a broker that runs", &["--config", "--takeover", "--log-format"])?;
            let start = if options.takeover { Start::Takeover } else { Start::Afresh };
            let file = options.config.unwrap_or_else(|| DEFAULT_CONFIG.into());
            Ok(Action::Run(file, start, options.log_format))
        }
        [verb, file] if verb == "check" => {
            options.only("check", &["--verbose", "--syntax", "--json"])?;
            let Options { verbose, syntax, json, .. } = options;
            Ok(Action::Check(Check { file: file.into(), verbose, syntax, json }))
        }
        [verb, ..] if verb == "check" => Err("check takes one file".into()),
        [verb, file] if verb == "explain" => {
            options.only("explain", &["--verbose", "--json"])?;
            let Options { verbose, json, .. } = options;
            Ok(Action::Explain(Explain { file: file.into(), verbose, json, question: None }))
        }
        [verb, file, what, object] if verb == "explain" => {
            options.only("a question", &["--json", "--as"])?;
            let text = |word: &OsString| word.clone().into_string().map_err(lexopt::Error::NonUnicodeValue);
            let question = Question::parse(&text(what)?, &text(object)?, options.by)?;
            let (file, json) = (file.into(), options.json);
            Ok(Action::Explain(Explain { file, verbose: false, json, question: Some(question) }))
        }
        [verb, ..] if verb == "explain" => {
            Err("explain takes a file, and after it listen ENDPOINT or address IP".into())
        }
        [verb, ..] => Err(format!("there is no command {verb:?}").into()),
    }
}
