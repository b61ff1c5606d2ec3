//! `portreeve address hold`: holds addresses until it is interrupted, or one of them is lost.

use std::net::IpAddr;
use std::process::ExitCode;

use portreeve::{AddressOptions, Client, Error, Lease};
use serde_json::json;
use tokio::signal::unix::SignalKind;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Targets;
use crate::arguments::seconds;
use crate::broker::Broker;
use crate::failure::Failure;
use crate::listen::signals;
use crate::output::{Output, note};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    targets: Targets,
    /// Length of the lease, such as 10, 10s or 2m, which is renewed after each fifth of it [default: the configured length].
    #[arg(long, value_name = "SECONDS", value_parser = seconds("--lease", 1..=u32::MAX))]
    lease: Option<u32>,
    /// Number of probes for another host that has an address, 200 ms each.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=3))]
    probes: u8,
    /// Do not announce the addresses to the neighbours.
    #[arg(long)]
    quiet: bool,
}

/// Why an address is no longer held.
type Lost = (IpAddr, Error);

pub async fn run(broker: &Broker, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut interrupted = interrupted()?;
    let client = broker.open_reconnecting().await?;
    let (stop, stopping) = watch::channel(());
    let mut held = JoinSet::new();
    let result = tokio::select! {
        result = hold(&client, out, arguments, &stopping, &mut held) => result,
        _ = interrupted.changed() => Ok(()),
    };
    let _ = stop.send(()); // each task removes its address, if it still has one
    while let Some(removed) = held.join_next().await {
        if let Ok(Err((address, error))) = removed {
            note(format_args!("{address} was not removed: {error}"));
        }
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// Becomes ready when a signal asks this process to end.
fn interrupted() -> Result<watch::Receiver<()>, Failure> {
    let (sender, receiver) = watch::channel(());
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let (mut received, sender) = (signals(kind)?, sender.clone());
        tokio::spawn(async move {
            received.recv().await;
            let _ = sender.send(()); // the process is ending
        });
    }
    Ok(receiver)
}

/// Adds the addresses, each of which a task then holds. Returns when one is lost or cannot be added.
async fn hold(
    client: &Client,
    out: Output,
    arguments: &Arguments,
    stopping: &watch::Receiver<()>,
    held: &mut JoinSet<Result<(), Lost>>,
) -> Result<(), Failure> {
    let Arguments { targets, lease, probes, quiet } = arguments;
    let mut options = AddressOptions::new().epoch(targets.epoch).probes(*probes).announce(!quiet);
    options.lease = *lease;
    let (lost, mut losses) = watch::channel(None);
    let mut shown = Vec::new();
    for address in &targets.addresses {
        let lease = client
            .hold_address(*address, &options)
            .await
            .map_err(|error| Failure::Address(*address, error))?;
        shown.push((lease.address(), lease.interface().to_owned()));
        held.spawn(keep(lease, lost.clone(), stopping.clone()));
    }
    // A closed standard output does not end what is held.
    let _ = if out.json {
        let row = |(address, interface)| json!({ "address": address, "interface": interface });
        out.value(&json!({ "held": shown.into_iter().map(row).collect::<Vec<_>>() }))
    } else {
        let lines = shown.iter().map(|(address, interface)| format!("{address} is held on {interface}"));
        out.text(lines.collect::<Vec<_>>().join("\n"))
    };
    match losses.wait_for(Option::is_some).await.map(|lost| lost.clone()) {
        Ok(Some((address, error))) => Err(Failure::Address(address, error)),
        _ => Ok(()),
    }
}

/// Holds an address until it is lost, or removes it when this command ends.
async fn keep(
    mut lease: Lease,
    lost: watch::Sender<Option<Lost>>,
    mut stopping: watch::Receiver<()>,
) -> Result<(), Lost> {
    let address = lease.address();
    tokio::select! {
        error = lease.lost() => {
            lost.send_replace(Some((address, error)));
            lease.let_expire();
            Ok(())
        }
        _ = stopping.changed() => match lease.remove().await {
            Ok(_) => Ok(()),
            Err(error) => Err((address, error)),
        },
    }
}
