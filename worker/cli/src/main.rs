//! `portreeve`: requests listeners, addresses and limits from the broker, and shows the broker's status.
//!
//! It sends requests over the broker's control socket; the broker's policy decides what it is allowed. It writes results to
//! standard output as tables or, with `--json`, as one JSON value; an error is one JSON value too. Exit codes are those of
//! sysexits(3).

mod address;
mod arguments;
mod broker;
mod cluster;
mod complete;
mod documentation;
mod events;
mod failure;
mod forward;
mod limit;
mod link;
mod listen;
mod metrics;
mod output;
mod ping;
mod policy;
mod reload;
mod run;
mod status;
mod unlisten;
mod watch;
mod worker;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::signal::SigSet;

use broker::Broker;
use failure::Failure;
use output::Output;

/// Requests listeners, addresses and limits from Portreeve's broker, and shows its status.
#[derive(Parser)]
#[command(name = "portreeve", version, max_term_width = 100, arg_required_else_help = true, after_help = failure::exit_codes_line())]
struct Arguments {
    #[command(flatten)]
    broker: Broker,
    /// Print the result or the error as one JSON value. See /usr/share/portreeve/portreeve.schema.json.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show the broker's processes with their privileges, its sessions, listeners and addresses.
    Status(status::Arguments),
    /// Request listeners, and hold them or pass them to a command.
    Listen(listen::Arguments),
    /// Run an unmodified program whose listeners the broker opens.
    Run(run::Arguments),
    /// Add, renew, move, announce, remove and list addresses.
    Address(address::Arguments),
    /// Show events of addresses, interfaces, listeners and the worker.
    Events(events::Arguments),
    /// Set resource limits, and run a command with them.
    Limit(limit::Arguments),
    /// Set an interface up or down, or change its MTU.
    Link(link::Arguments),
    /// Show the rules that allow this user requests, and the floating addresses.
    Policy,
    /// Show and direct the cluster: which node has which address, why, and what happens next.
    Cluster(cluster::Arguments),
    /// Stop listeners.
    Unlisten(unlisten::Arguments),
    /// The deprecated name of `unlisten`.
    #[command(hide = true)]
    Stop(unlisten::Arguments),
    /// Show the broker's metrics, or serve them to Prometheus.
    Metrics(metrics::Arguments),
    /// Make the broker read its configuration again, and show what changed.
    Reload(reload::Arguments),
    /// Show, restart or signal the broker's worker.
    Worker(worker::Arguments),
    /// Measure the round trip to the broker.
    Ping(ping::Arguments),
    /// Print the completions of this command for a shell.
    Completions(documentation::Completions),
    /// Write the man pages of this command.
    #[command(hide = true)]
    Man(documentation::Pages),
    /// Execute the command of `portreeve listen`, which starts this.
    #[command(hide = true)]
    Exec(listen::exec::Arguments),
}

async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let out = Output { json: arguments.json };
    let broker = &arguments.broker;
    match arguments.action {
        Action::Status(arguments) => status::run(broker, out, &arguments).await,
        Action::Address(arguments) => address::run(broker, out, arguments).await,
        Action::Events(arguments) => events::run(&broker.open().await?, out, &arguments).await,
        Action::Limit(arguments) => limit::run(broker, out, arguments).await,
        Action::Link(arguments) => link::run(&broker.open().await?, out, &arguments).await,
        Action::Policy => policy::run(&broker.open().await?, out).await,
        Action::Cluster(arguments) => cluster::run(broker, out, arguments).await,
        Action::Listen(arguments) => listen::run(&broker.open().await?, out, arguments).await,
        Action::Run(arguments) => run::run(broker, out, arguments).await,
        Action::Unlisten(arguments) => unlisten::run(&broker.open().await?, out, &arguments).await,
        Action::Stop(arguments) => {
            output::note("`portreeve stop` is deprecated and will be removed: use `portreeve unlisten`");
            unlisten::run(&broker.open().await?, out, &arguments).await
        }
        Action::Metrics(arguments) => metrics::run(broker, out, &arguments).await,
        Action::Completions(arguments) => documentation::completions(&arguments),
        Action::Man(arguments) => documentation::pages(&arguments),
        Action::Exec(arguments) => listen::exec::run(&arguments),
        Action::Reload(arguments) => reload::run(&broker.open().await?, out, &arguments).await,
        Action::Worker(arguments) => worker::run(&broker.open().await?, out, &arguments).await,
        Action::Ping(arguments) => ping::run(&broker.open().await?, out, &arguments).await,
    }
}

fn main() -> ExitCode {
    complete::answer(<Arguments as clap::CommandFactory>::command);
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let json = std::env::args_os().any(|argument| argument == OsStr::new("--json"));
            return Failure::Usage(Box::new(error)).report(json);
        }
    };
    let json = arguments.json;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Only the main thread gets signals, so that it can block them.
        .on_thread_start(|| {
            let _ = SigSet::all().thread_block(); // cannot fail for a valid set
        })
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(arguments));
            // A connect(2) may wait without end, so its thread is not joined.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::System("cannot start the runtime".to_owned(), error)),
    };
    result.unwrap_or_else(|failure| failure.report(json))
}
