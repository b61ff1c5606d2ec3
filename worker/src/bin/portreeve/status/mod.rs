//! `portreeve status`: the broker's state, all pages of it; once, or again and again.

mod page;

use std::process::ExitCode;
use std::time::Duration;

use portreeve_worker::Client;
use portreeve_worker::status::{Listener, Status};
use tokio::signal::unix::SignalKind;
use tokio::time::interval;

use crate::failure::Failure;
use crate::open::Broker;
use crate::output::{self, Output};
use crate::{listen, watch};

#[derive(clap::Args)]
pub struct Arguments {
    /// Show it again every so many seconds, until interrupted [default: 2]; with --json one value a line.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    watch: Option<u64>,
}

pub async fn run(broker: &Broker, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    if let Some(seconds) = arguments.watch {
        return keep_showing(broker, out, Duration::from_secs(seconds)).await;
    }
    let (status, listeners) = ask(&broker.open().await?).await?;
    match out.json {
        true => out.value(&page::value(&status, &listeners))?,
        false => out.text(page::text(&status, &listeners))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A broker that is away is told of, and asked again.
async fn keep_showing(broker: &Broker, out: Output, every: Duration) -> Result<ExitCode, Failure> {
    let mut interrupt = listen::on(SignalKind::interrupt())?;
    let (mut again, mut session) = (interval(every), None);
    loop {
        tokio::select! {
            _ = again.tick() => {}
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
            () = output::reader_gone() => return Ok(ExitCode::SUCCESS),
        }
        match look(broker, &mut session).await {
            Ok((status, listeners)) if out.json => out.value(&page::value(&status, &listeners))?,
            Ok((status, listeners)) => watch::show(&page::text(&status, &listeners))?,
            Err(failure) => {
                session = None;
                match out.json {
                    true => out.value(&failure.value())?,
                    false => watch::show(&failure.line())?,
                }
            }
        }
    }
}

async fn look(broker: &Broker, session: &mut Option<Client>) -> Result<(Status, Vec<Listener>), Failure> {
    let client = match session {
        Some(client) => client,
        None => session.insert(broker.open().await?),
    };
    ask(client).await
}

/// The state, with every page of the listeners.
async fn ask(client: &Client) -> Result<(Status, Vec<Listener>), Failure> {
    let status = client.status(0).await?;
    let mut listeners = status.listeners.to_vec();
    let mut next = status.next;
    // Numbers only grow, so a broker that sends the reader back ends the list.
    while listeners.last().is_some_and(|last| next >= last.id.0) {
        let page = client.status(next).await?;
        next = page.next;
        listeners.extend(page.listeners.into_vec());
    }
    Ok((status, listeners))
}
