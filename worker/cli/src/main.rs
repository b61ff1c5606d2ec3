//! `portreeve`: asks the broker for listeners and addresses, gives them back, and shows its state.
//!
//! It talks to the broker's control socket and decides nothing: what it may do is the broker's policy. Results
//! go to standard output as tables or, with `--json`, as one JSON value, errors too; exit codes are those of
//! sysexits(3).

mod address;
mod documentation;
mod events;
mod failure;
mod limit;
mod link;
mod listen;
mod metrics;
mod open;
mod output;
mod ping;
mod policy;
mod reload;
mod status;
mod stop;
mod watch;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;
use open::Broker;
use output::Output;

/// Asks Portreeve's broker for listeners and shows its state.
#[derive(Parser)]
#[command(name = "portreeve", version, max_term_width = 100, arg_required_else_help = true, after_help = failure::exit_codes_line())]
struct Arguments {
    #[command(flatten)]
    broker: Broker,
    /// Print one JSON value, for errors too.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show processes and what they hold, sessions and listeners.
    Status(status::Arguments),
    /// Ask for listeners and hold them, or pass them on to a command.
    Listen(listen::Arguments),
    /// Put addresses on this host, renew, move, remove, announce and list them.
    Address(address::Arguments),
    /// Show what happened to addresses, interfaces and the worker, and what happens.
    Events(events::Arguments),
    /// Set limits of a command's resources, and run it.
    Limit(limit::Arguments),
    /// Set an interface up or down, or to another MTU.
    Link(link::Arguments),
    /// Show what this user may ask for, and the addresses that move between hosts.
    Policy,
    /// Take listeners out of service.
    Stop(stop::Arguments),
    /// Show what the broker has counted and measured, or serve it to Prometheus.
    Metrics(metrics::Arguments),
    /// Have the broker read its configuration again, and show what that changed.
    Reload(reload::Arguments),
    /// Measure the round trip to the broker.
    Ping(ping::Arguments),
    /// Print what a shell needs to complete this command's words.
    Completions(documentation::Completions),
    /// Write the man pages of this command.
    #[command(hide = true)]
    Man(documentation::Pages),
}

async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let out = Output { json: arguments.json };
    let broker = &arguments.broker;
    match arguments.verb {
        Verb::Status(verb) => status::run(broker, out, &verb).await,
        Verb::Address(verb) => address::run(&broker.open().await?, out, verb).await,
        Verb::Events(verb) => events::run(&broker.open().await?, out, &verb).await,
        Verb::Limit(verb) => limit::run(&broker.open().await?, out, verb).await,
        Verb::Link(verb) => link::run(&broker.open().await?, out, &verb).await,
        Verb::Policy => policy::run(&broker.open().await?, out).await,
        Verb::Listen(verb) => listen::run(&broker.open().await?, out, verb).await,
        Verb::Stop(verb) => stop::run(&broker.open().await?, out, &verb).await,
        Verb::Metrics(verb) => metrics::run(broker, out, &verb).await,
        Verb::Completions(verb) => documentation::completions(&verb),
        Verb::Man(verb) => documentation::pages(&verb),
        Verb::Reload(verb) => reload::run(&broker.open().await?, out, &verb).await,
        Verb::Ping(verb) => ping::run(&broker.open().await?, out, &verb).await,
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
        Ok(runtime) => {
            let result = runtime.block_on(run(arguments));
            // A connect(2) that waits for ever is not waited for.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::System("starting", error)),
    };
    result.unwrap_or_else(|failure| failure.report(json))
}
