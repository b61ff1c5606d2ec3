//! `portreeve cluster`: reports and orders through the coordinator of this host, the coordinator's settings, and simulated
//! clusters.

mod check;
mod coordinator;
mod events;
mod explain;
mod metrics;
mod order;
mod plan;
mod settings;
mod simulate;
mod status;

use std::process::ExitCode;

use crate::broker::Broker;
use crate::failure::Failure;
use crate::output::Output;
use coordinator::{Client, Coordinator};

pub use coordinator::DEFAULT_SOCKET as COORDINATOR_SOCKET;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    coordinator: Coordinator,
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Show the nodes, which of them has which address, the orders, and what needs attention.
    Status(status::Arguments),
    /// Show who has an address, since when, why there, why not elsewhere, and what happens next and when.
    Explain(explain::Arguments),
    /// Show the moves that the placement wants now, or would want without a node.
    Plan(plan::Arguments),
    /// Check the engine, the certificates and what the nodes declare; the exit code tells the result.
    Check(check::Arguments),
    /// Show events of addresses, nodes, orders and the engine.
    Events(events::Arguments),
    /// Move an address to a node, and pin it there.
    Move(order::Move),
    /// Remove the pin of an address.
    Unpin(order::Unpin),
    /// Take a node out of use: it hands its addresses over and gets no other.
    Drain(order::Drain),
    /// Put a drained node into use again.
    Undrain(order::Undrain),
    /// Stop voluntary moves of addresses. Failover still works.
    Freeze(order::Freeze),
    /// Allow voluntary moves of addresses again.
    Thaw,
    /// Take over the addresses of a host that is powered off, without waiting for the end of its lease.
    Evict(order::Evict),
    /// Show the coordinator's metrics, or serve them to Prometheus.
    Metrics(metrics::Arguments),
    /// Show the settings of the coordinator: the cluster scope of the broker's configuration, with its defaults.
    Settings,
    /// Show what a script of faults does to a simulated cluster. It needs no broker and no engine.
    Simulate(simulate::Arguments),
}

pub async fn run(broker: &Broker, out: Output, arguments: Arguments) -> Result<ExitCode, Failure> {
    let client = Client::new(&arguments.coordinator, broker.timeout, out);
    match arguments.action {
        Action::Status(arguments) => status::run(&client, out, &arguments).await,
        Action::Explain(arguments) => explain::run(&client, out, &arguments).await,
        Action::Plan(arguments) => plan::run(&client, out, &arguments).await,
        Action::Check(arguments) => check::run(&client, out, &arguments).await,
        Action::Events(arguments) => events::run(&client, out, &arguments).await,
        Action::Metrics(arguments) => metrics::run(client, out, &arguments).await,
        Action::Move(arguments) => order::pin(&client, out, &arguments).await,
        Action::Unpin(arguments) => order::unpin(&client, out, &arguments).await,
        Action::Drain(arguments) => order::drain(&client, out, &arguments).await,
        Action::Undrain(arguments) => order::undrain(&client, out, &arguments).await,
        Action::Freeze(arguments) => order::freeze(&client, out, &arguments).await,
        Action::Thaw => order::thaw(&client, out).await,
        Action::Evict(arguments) => order::evict(&client, out, &arguments).await,
        Action::Settings => settings::run(&broker.open().await?, out).await,
        Action::Simulate(arguments) => simulate::run(out, &arguments),
    }
}
