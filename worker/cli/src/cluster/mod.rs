//! `portreeve cluster`: the settings of a coordinator, and simulated clusters.

mod settings;
mod simulate;

use std::process::ExitCode;

use crate::broker::Broker;
use crate::failure::Failure;
use crate::output::Output;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Show the settings of the coordinator: the cluster scope of the broker's configuration, with its defaults.
    Settings,
    /// Show what a script of faults does to a simulated cluster. It needs no broker and no engine.
    Simulate(simulate::Arguments),
}

pub async fn run(broker: &Broker, out: Output, arguments: Arguments) -> Result<ExitCode, Failure> {
    match arguments.action {
        Action::Settings => settings::run(&broker.open().await?, out).await,
        Action::Simulate(arguments) => simulate::run(out, &arguments),
    }
}
