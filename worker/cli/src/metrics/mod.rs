//! `portreeve metrics`: what the broker has counted and measured, in the Prometheus text format; once, or to whoever
//! asks over HTTP. The broker itself opens no port for it.

mod page;
mod serve;
mod text;

use std::net::SocketAddr;
use std::process::ExitCode;

use portreeve::Client;
use portreeve::address::AddressRow;
use portreeve::metrics::Metrics;

use crate::failure::Failure;
use crate::open::Broker;
use crate::output::Output;

#[derive(clap::Args)]
pub struct Arguments {
    /// Serve them at http://ADDRESS:PORT/metrics until interrupted.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "json")]
    listen: Option<SocketAddr>,
    /// How many addresses are told of one by one, with what is left of their leases.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_240))]
    leases: u32,
}

pub async fn run(broker: &Broker, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    if let Some(address) = arguments.listen {
        serve::serve(broker, address, arguments.leases as usize).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = broker.open().await?;
    let (metrics, leases) = ask(&client, arguments.leases as usize).await?;
    match out.json {
        true => out.value(&serde_json::json!(metrics))?,
        false => out.text(page::of(&metrics, &leases).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The metrics, and the first leases where there are any and this peer may list them.
async fn ask(client: &Client, most: usize) -> Result<(Metrics, Vec<AddressRow>), portreeve::Error> {
    let metrics = client.metrics().await?;
    let may = client.welcome().is_some_and(|welcome| {
        welcome.operations.iter().any(|operation| operation.as_str() == "list-addresses")
    });
    let mut leases: Vec<AddressRow> = Vec::new();
    let mut more = metrics.addresses.is_some() && may;
    while more && leases.len() < most {
        let page = client.addresses(leases.last().map(|row| row.lease.address)).await?;
        more = page.more && !page.addresses.is_empty();
        leases.extend(page.addresses.into_vec());
    }
    leases.truncate(most);
    Ok((metrics, leases))
}
