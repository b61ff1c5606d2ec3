//! `portreeve metrics`: the broker's metrics in the Prometheus text format, once or over HTTP. The broker itself opens no port
//! for them.

pub mod exposition;
pub mod families;
pub mod serve;

use std::net::SocketAddr;
use std::process::ExitCode;

use portreeve::Client;
use portreeve::address::AddressRow;
use portreeve::metrics::Metrics;
use tokio::sync::Mutex;

use crate::broker::Broker;
use crate::failure::Failure;
use crate::output::Output;
use serve::Pages;

#[derive(clap::Args)]
pub struct Arguments {
    /// Serve the metrics at http://ADDRESS:PORT/metrics until interrupted.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "json", value_parser = place)]
    listen: Option<SocketAddr>,
    /// Maximum number of addresses that are listed with the remaining time of their leases.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_240))]
    leases: u32,
}

/// Parses where to serve.
pub fn place(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an address and port, such as 127.0.0.1:9100 or [::1]:9100".to_owned())
}

pub async fn run(broker: &Broker, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    if let Some(address) = arguments.listen {
        serve::serve(Source::new(broker, arguments.leases as usize), address).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = broker.open().await?;
    let (metrics, leases) = fetch(&client, arguments.leases as usize).await?;
    match out.json {
        true => out.value(&serde_json::json!(metrics))?,
        false => out.text(families::page(&metrics, &leases).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Fetches the metrics, and the first leases if this peer may list them.
async fn fetch(client: &Client, max_leases: usize) -> Result<(Metrics, Vec<AddressRow>), portreeve::Error> {
    let metrics = client.metrics().await?;
    let may_list = client.welcome().is_some_and(|welcome| {
        welcome.operations.iter().any(|operation| operation.as_str() == "list-addresses")
    });
    let mut leases: Vec<AddressRow> = Vec::new();
    let mut more = metrics.addresses.is_some() && may_list;
    while more && leases.len() < max_leases {
        let page = client.addresses(leases.last().map(|row| row.lease.address)).await?;
        more = page.more && !page.addresses.is_empty();
        leases.extend(page.addresses.into_vec());
    }
    leases.truncate(max_leases);
    Ok((metrics, leases))
}

/// The broker as the source of pages: one session, reopened after it has ended.
struct Source {
    broker: Broker,
    leases: usize,
    session: Mutex<Option<Client>>,
}

impl Source {
    fn new(broker: &Broker, leases: usize) -> Self {
        Source { broker: broker.clone(), leases, session: Mutex::default() }
    }
}

impl Pages for Source {
    const SOURCE: &'static str = "broker";

    async fn fetch(&self) -> Result<String, String> {
        let mut session = self.session.lock().await;
        // It is not put back if the broker does not reply.
        if let Some(client) = session.take()
            && let Ok((metrics, leases)) = fetch(&client, self.leases).await
        {
            *session = Some(client);
            return Ok(families::page(&metrics, &leases));
        }
        // A broker that was restarted does not have the old session.
        let client = self.broker.open().await.map_err(|failure| failure.line())?;
        let (metrics, leases) = fetch(&client, self.leases).await.map_err(|error| error.to_string())?;
        *session = Some(client);
        Ok(families::page(&metrics, &leases))
    }

    fn without(&self) -> String {
        families::page_without_broker()
    }
}
