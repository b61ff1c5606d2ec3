//! `portreeve completions` and `portreeve man`: what shells and man(1) know of the command, from its own definition, so
//! that they cannot say anything else.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::Arguments;
use crate::failure::{EXIT_CODES, Failure};

#[derive(clap::Args)]
pub struct Completions {
    /// The shell to complete for.
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

#[derive(clap::Args)]
pub struct Pages {
    /// Where to write them.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Prints the completions of one shell.
pub fn completions(asked: &Completions) -> Result<ExitCode, Failure> {
    let shell = match asked.shell.as_str() {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        _ => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "portreeve", &mut script);
    io::stdout().write_all(&script).map_err(Failure::Output)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a man page for the command and for each of its verbs.
pub fn pages(asked: &Pages) -> Result<ExitCode, Failure> {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    write(&asked.directory, &command, true).map_err(|error| Failure::System("writing a man page", error))?;
    Ok(ExitCode::SUCCESS)
}

fn write(directory: &Path, command: &Command, is_first: bool) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if is_first {
        page.extend(FILES.as_bytes());
        page.extend(exit_codes().as_bytes());
    }
    let also = if is_first { ALSO } else { ".SH \"SEE ALSO\"\n.BR portreeve (1),\n.BR portreeved (8)\n" };
    page.extend(also.as_bytes());
    // Each section begins with how it writes an apostrophe, and lists of values with an empty line too many.
    let text = String::from_utf8_lossy(&page).replace(APOSTROPHE, "").replace(".br\n\n.br\n", ".sp\n");
    let (title, release) = (name.to_uppercase(), env!("CARGO_PKG_VERSION"));
    let title = format!(".TH {title} 1 \"{DATE}\" \"Portreeve {release}\" Portreeve\n");
    std::fs::write(directory.join(format!("{name}.1")), [APOSTROPHE, &title, &text].concat())?;
    let mut verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    verbs.try_for_each(|verb| write(directory, verb, false))
}

fn exit_codes() -> String {
    let codes = EXIT_CODES.iter().map(|(code, meaning)| format!(".TP\n{code}\n{meaning}\n"));
    let codes: String = codes.collect();
    let more = ".PP\nportreeve listen \\-\\-exec exits as its command does.\n";
    format!(".SH \"EXIT STATUS\"\nThose of sysexits(3), and 1.\n{codes}{more}")
}

/// When these pages were last looked at.
const DATE: &str = "2026-11-23";

const APOSTROPHE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

const FILES: &str = "\
.SH JSON
With \\-\\-json the result is one JSON value on standard output, and so is an error: an object whose only member is
error, with code, message and, from the broker, number, subject, remedy and errno. The exit status is the same.
.SH FILES
.TP
/run/portreeve/broker.sock
The control socket, unless \\-\\-socket or PORTREEVE_SOCKET names another.
.SH ENVIRONMENT
.TP
PORTREEVE_SOCKET
The control socket.
.TP
NO_COLOR
If it is set and not empty, nothing is in colour. Nothing is in colour either but on a terminal.
.TP
COLUMNS
How wide tables are where standard output is no terminal.
";

const ALSO: &str = "\
.SH \"SEE ALSO\"
.BR portreeved (8),
.BR portreeve.conf (5),
.BR portreeve\\-faults (7)
";
