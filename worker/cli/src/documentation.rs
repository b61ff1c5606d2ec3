//! `portreeve completions` and `portreeve man`: shell completions and man pages, generated from the definition of the command
//! line so that they cannot differ from it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::Arguments;
use crate::complete;
use crate::failure::{EXIT_CODES, Failure};

#[derive(clap::Args)]
pub struct Completions {
    /// The shell to complete for.
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

#[derive(clap::Args)]
pub struct Pages {
    /// The directory to write the man pages to.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Prints the completions of one shell.
pub fn completions(arguments: &Completions) -> Result<ExitCode, Failure> {
    let script = complete::script(&arguments.shell).map_err(Failure::Output)?;
    io::stdout().write_all(&script).map_err(Failure::Output)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a man page for the command and for each subcommand.
pub fn pages(arguments: &Pages) -> Result<ExitCode, Failure> {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let what = || format!("cannot write the man pages to {}", arguments.directory.display());
    write(&arguments.directory, &command, true).map_err(|error| Failure::System(what(), error))?;
    Ok(ExitCode::SUCCESS)
}

fn write(directory: &Path, command: &Command, is_first: bool) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = Man::new(command.clone());
    let (mut page, mut synopsis) = (Vec::new(), Vec::new());
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut synopsis)?;
    // clap_mangen does not write the `--` before a command.
    let command_line = r"[\-\- \fICOMMAND\fR ...]";
    page.extend(String::from_utf8_lossy(&synopsis).replace(r"[\fICOMMAND\fR]", command_line).into_bytes());
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if is_first {
        page.extend(FILES.as_bytes());
        page.extend(exit_codes().as_bytes());
    }
    if is_first {
        page.extend(EXAMPLES.as_bytes());
    }
    page.extend(
        command.get_after_long_help().map(|help| notes(&help.to_string())).unwrap_or_default().into_bytes(),
    );
    let also = if is_first { ALSO } else { ".SH \"SEE ALSO\"\n.BR portreeve (1),\n.BR portreeved (8)\n" };
    page.extend(also.as_bytes());
    // Each section defines the apostrophe again, and lists of values have one empty line too many.
    let text = String::from_utf8_lossy(&page).replace(APOSTROPHE, "").replace(".br\n\n.br\n", ".sp\n");
    let (title, release) = (name.to_uppercase(), env!("CARGO_PKG_VERSION"));
    let title = format!(".TH {title} 1 \"{DATE}\" \"Portreeve {release}\" Portreeve\n");
    std::fs::write(directory.join(format!("{name}.1")), [APOSTROPHE, &title, &text].concat())?;
    let mut subcommands = command.get_subcommands().filter(|one| !one.is_hide_set());
    subcommands.try_for_each(|one| write(directory, one, false))
}

/// What --help shows at its end, line by line.
fn notes(help: &str) -> String {
    let escape = |line: &str| format!("\\&{}\n", line.replace('\\', r"\e").replace('-', r"\-"));
    let lines: String = help.lines().map(escape).collect();
    format!(".SH NOTES\n.nf\n{lines}.fi\n")
}

fn exit_codes() -> String {
    let codes = EXIT_CODES.iter().map(|(code, meaning)| format!(".TP\n{code}\n{meaning}\n"));
    let codes: String = codes.collect();
    let more = ".PP\nportreeve listen and portreeve limit with a command, and portreeve run, exit as that command does.\n";
    format!(".SH \"EXIT STATUS\"\nAs in sysexits(3), and 1.\n{codes}{more}")
}

/// The date of the man pages: when they were last reviewed.
const DATE: &str = "2026-11-28";

const APOSTROPHE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

const FILES: &str = "\
.SH JSON
With \\-\\-json the result is one JSON value on standard output, as /usr/share/portreeve/portreeve.schema.json describes it. What
failed has the member error, an object with the members code and message; a fault of the broker also has number, subject,
remedy and errno. The exit status is the same.
.SH FILES
.TP
/run/portreeve/broker.sock
The control socket, unless \\-\\-socket or PORTREEVE_SOCKET names another.
.TP
/run/portreeve\\-coordinator/control.sock
The control socket of the coordinator for portreeve cluster, unless \\-\\-coordinator or PORTREEVE_COORDINATOR_SOCKET names another.
Its group may read the reports; root and the coordinator's own user may give orders.
.SH ENVIRONMENT
.TP
PORTREEVE_SOCKET
The control socket.
.TP
PORTREEVE_COORDINATOR_SOCKET
The control socket of the coordinator.
.TP
NO_COLOR
If it is set and not empty, the output has no colour. Only a terminal gets colour.
.TP
COLUMNS
The width of tables if standard output is not a terminal.
";

const EXAMPLES: &str = "\
.SH EXAMPLES
.TP
portreeve status
Show what the broker holds and serves.
.TP
portreeve listen '*:25' \\-\\- /usr/sbin/smtpd \\-\\-inherit
Open port 25 and run a program with the socket, as systemd's socket activation passes it.
.TP
portreeve run \\-\\- python3 \\-m http.server 80
Run an unmodified server whose listeners the broker opens.
.TP
portreeve address add 192.0.2.7 \\-\\-lease 30
Add an address for 30 seconds; portreeve address renew 192.0.2.7 continues the lease.
.TP
portreeve cluster status
Show which node of the cluster has which address, and what needs attention.
.TP
portreeve cluster check \\-\\-strict
Check the set\\-up of the cluster and of its engine; the exit status is 1 if a check fails or warns.
.TP
portreeve cluster drain mx1 \\-\\-why 'new disk' \\-\\-wait
Take a node out of use and wait until the others have its addresses.
.TP
portreeve \\-\\-json events \\-\\-follow
Print each event as one line of JSON.
";

const ALSO: &str = "\
.SH \"SEE ALSO\"
.BR portreeved (8),
.BR portreeve.conf (5),
.BR portreeve\\-faults (7)
";
