//! `portreeve`: asks the broker for listeners and addresses, gives them back, and shows its state.
//!
//! It talks to the broker's control socket and decides nothing: what it may do is the broker's policy. Results
//! go to standard output as tables or, with `--json`, as one JSON value, errors too; exit codes are those of
//! sysexits(3).

mod address;
mod events;
mod failure;
mod listen;
mod metrics;
mod output;
mod ping;
mod status;
mod stop;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use portreeve_worker::{Channel, Client, DEFAULT_SOCKET};

use failure::Failure;
use output::Output;

/// Asks Portreeve's broker for listeners and shows its state.
#[derive(Parser)]
#[command(name = "portreeve", version, max_term_width = 100, arg_required_else_help = true)]
struct Arguments {
    /// The broker's control socket.
    #[arg(long, global = true, value_name = "PATH", env = "PORTREEVE_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Print one JSON value, for errors too.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show processes and what they hold, sessions and listeners.
    Status,
    /// Ask for listeners and hold them, or pass them on to a command.
    Listen(listen::Arguments),
    /// Put addresses on this host, renew, remove, announce and list them.
    Address(address::Arguments),
    /// Show what happened to addresses, interfaces and the worker, and what happens.
    Events(events::Arguments),
    /// Take listeners out of service.
    Stop(stop::Arguments),
    /// Show what the broker has counted and measured, or serve it to Prometheus.
    Metrics(metrics::Arguments),
    /// Measure the round trip to the broker.
    Ping(ping::Arguments),
}

async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let out = Output { json: arguments.json };
    let open = async || Client::open(Channel::connect(&arguments.socket)?, "portreeve").await;
    match arguments.verb {
        Verb::Status => status::run(&open().await?, out).await,
        Verb::Address(verb) => address::run(&open().await?, out, verb).await,
        Verb::Events(verb) => events::run(&open().await?, out, &verb).await,
        Verb::Listen(verb) => listen::run(&open().await?, out, verb).await,
        Verb::Stop(verb) => stop::run(&open().await?, out, &verb).await,
        Verb::Metrics(verb) => metrics::run(&arguments.socket, out, &verb).await,
        Verb::Ping(verb) => ping::run(&open().await?, out, &verb).await,
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let json = std::env::args_os().any(|argument| argument == OsStr::new("--json"));
            return Failure::Usage(Box::new(error)).report(json);
        }
    };
    let json = arguments.json;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(Failure::System("starting", error)),
    };
    result.unwrap_or_else(|failure| failure.report(json))
}
