//! `portreeve status`: the broker's status, with all pages; once, or repeatedly.

mod render;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use portreeve::address::AddressRow;
use portreeve::status::{Listener, Status};
use portreeve::{Client, Error, FaultCode};
use tokio::signal::unix::SignalKind;
use tokio::time::interval;

use crate::address::AddressList;
use crate::arguments::seconds;
use crate::broker::Broker;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::{listen, watch};

#[derive(clap::Args)]
pub struct Arguments {
    /// Show the status every SECONDS seconds, until interrupted [default: 2]; with --json one value per line.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds("--watch", 1..=86_400))]
    watch: Option<u32>,
}

pub async fn run(broker: &Broker, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    if let Some(every) = arguments.watch {
        return watch_loop(broker, out, Duration::from_secs(every.into())).await;
    }
    let state = fetch(&broker.open().await?).await?;
    match out.json {
        true => out.value(&render::value(&state))?,
        false => out.text(render::text(&state))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the status, or the error, repeatedly.
async fn watch_loop(broker: &Broker, out: Output, every: Duration) -> Result<ExitCode, Failure> {
    let mut interrupt = listen::signals(SignalKind::interrupt())?;
    let (mut ticks, mut session) = (interval(every), None);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
            () = output::reader_closed() => return Ok(ExitCode::SUCCESS),
        }
        match fetch_or_reopen(broker, &mut session).await {
            Ok(state) if out.json => out.value(&render::value(&state))?,
            Ok(state) => watch::show(&render::text(&state))?,
            Err(failure) => {
                session = None;
                match out.json {
                    true => out.value(&failure.value())?,
                    false if io::stdout().is_terminal() => watch::show(&failure.line())?,
                    false => output::error(failure.line()),
                }
            }
        }
    }
}

/// Fetches the status over the session; opens a session first if none is open.
async fn fetch_or_reopen(broker: &Broker, session: &mut Option<Client>) -> Result<State, Failure> {
    let client = match session {
        Some(client) => client,
        None => session.insert(broker.open().await?),
    };
    fetch(client).await
}

/// The data that is shown.
struct State {
    status: Status,
    listeners: Vec<Listener>,
    /// Whether a fence ends the leases, and the addresses; `None` if this user may not list them, or the broker manages none.
    addresses: Option<(bool, Vec<AddressRow>)>,
}

async fn addresses(client: &Client) -> Result<Option<(bool, Vec<AddressRow>)>, Error> {
    let may_list = client.welcome().is_some_and(|welcome| {
        welcome.operations.iter().any(|operation| operation.as_str() == "list-addresses")
    });
    if !may_list {
        return Ok(None);
    }
    match AddressList::fetch(client).await {
        Ok(list) => Ok(Some((list.fenced, list.rows))),
        Err(Error::Fault(fault)) if fault.code == FaultCode::NotRetained => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fetches the status, with every page of the listeners and of the addresses.
async fn fetch(client: &Client) -> Result<State, Failure> {
    let status = client.status(0).await?;
    let mut listeners = status.listeners.to_vec();
    let mut next = status.next;
    // Numbers only increase. A faulty broker that returns a lower one would make this loop endless.
    while listeners.last().is_some_and(|last| next >= last.id.0) {
        let page = client.status(next).await?;
        next = page.next;
        listeners.extend(page.listeners.into_vec());
    }
    Ok(State { status, listeners, addresses: addresses(client).await? })
}
