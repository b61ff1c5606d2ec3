//! `portreeve-coordinator`: decides with the other nodes of a cluster which of them holds which address.

#![forbid(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use portreeve_coordinator::daemon::{self, End, Failure, Options};
use tokio::task::LocalSet;
use tracing_subscriber::EnvFilter;

/// Decides with the other nodes of a cluster which of them holds which address, and asks the broker of this host to add and
/// remove them. Its settings are the cluster scope of the broker's configuration: see portreeve.conf(5).
///
/// SIGTERM and SIGINT hand the addresses over to other nodes, and end the program. SIGHUP executes the program again, which
/// continues without moving an address: use it after an upgrade.
#[derive(Parser)]
#[command(name = "portreeve-coordinator", version)]
struct Arguments {
    /// The control socket of the broker.
    #[arg(long, value_name = "PATH", env = "PORTREEVE_SOCKET", default_value = portreeve::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// The control socket of this program, for portreeve cluster.
    #[arg(
        long,
        value_name = "PATH",
        env = "PORTREEVE_COORDINATOR_SOCKET",
        default_value = "/run/portreeve-coordinator/control.sock"
    )]
    control: PathBuf,
    /// What to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", env = "PORTREEVE_LOG", default_value = "info")]
    log_level: tracing::Level,
}

fn main() -> ExitCode {
    let Arguments { socket, control, log_level } = Arguments::parse();
    start_log(log_level);
    match run(&Options { socket, control }) {
        Ok(End::Left) => ExitCode::SUCCESS,
        Ok(End::Again) => {
            let failure = Failure::System("cannot execute this program again".to_owned(), execute_again());
            fail(&failure)
        }
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    tracing::error!("{failure}");
    ExitCode::from(failure.code())
}

/// Logs to standard error; without time stamps if that is the journal, which adds its own.
fn start_log(level: tracing::Level) {
    // Libraries log their own matters at these levels too.
    let filter = EnvFilter::new(format!("warn,portreeve_coordinator={level}"));
    let log = tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter).with_ansi(false);
    match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => log.without_time().init(),
        None => log.init(),
    }
}

fn run(options: &Options) -> Result<End, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::System("cannot start the runtime".to_owned(), error))?;
    LocalSet::new().block_on(&runtime, daemon::run(options))
}

/// Replaces the process by the program at the path of its start, which an upgrade may have replaced.
fn execute_again() -> io::Error {
    let mut arguments = std::env::args_os();
    let program = match arguments.next() {
        Some(path) if path.to_string_lossy().contains('/') => PathBuf::from(path),
        _ => match std::env::current_exe() {
            Ok(path) => path,
            Err(error) => return error,
        },
    };
    tracing::info!(program = %program.display(), "executing the program again");
    Command::new(program).args(arguments).exec()
}
