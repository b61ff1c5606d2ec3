//! `portreeve status`: the broker's state, all pages of it; once, or again and again.

mod page;

use std::process::ExitCode;
use std::time::Duration;

use portreeve::address::AddressRow;
use portreeve::status::{Listener, Status};
use portreeve::{Client, Error, FaultCode};
use tokio::signal::unix::SignalKind;
use tokio::time::interval;

use crate::failure::Failure;
use crate::open::Broker;
use crate::output::{self, Output};
use crate::{address, listen, watch};

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
    let state = ask(&broker.open().await?).await?;
    match out.json {
        true => out.value(&page::value(&state))?,
        false => out.text(page::text(&state))?,
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
            Ok(state) if out.json => out.value(&page::value(&state))?,
            Ok(state) => watch::show(&page::text(&state))?,
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

async fn look(broker: &Broker, session: &mut Option<Client>) -> Result<State, Failure> {
    let client = match session {
        Some(client) => client,
        None => session.insert(broker.open().await?),
    };
    ask(client).await
}

/// What is shown.
struct State {
    status: Status,
    listeners: Vec<Listener>,
    /// Where this user may ask for them, and the broker can have any; and whether a fence ends their leases.
    addresses: Option<(bool, Vec<AddressRow>)>,
}

async fn addresses(client: &Client) -> Result<Option<(bool, Vec<AddressRow>)>, Error> {
    let may = client.welcome().is_some_and(|welcome| {
        welcome.operations.iter().any(|operation| operation.as_str() == "list-addresses")
    });
    if !may {
        return Ok(None);
    }
    match address::all(client).await {
        Ok(all) => Ok(Some(all)),
        Err(Error::Fault(fault)) if fault.code == FaultCode::NotRetained => Ok(None),
        Err(error) => Err(error),
    }
}

/// The state, with every page of the listeners and of the addresses.
async fn ask(client: &Client) -> Result<State, Failure> {
    let status = client.status(0).await?;
    let mut listeners = status.listeners.to_vec();
    let mut next = status.next;
    // Numbers only grow, so a broker that sends the reader back ends the list.
    while listeners.last().is_some_and(|last| next >= last.id.0) {
        let page = client.status(next).await?;
        next = page.next;
        listeners.extend(page.listeners.into_vec());
    }
    Ok(State { status, listeners, addresses: addresses(client).await? })
}
