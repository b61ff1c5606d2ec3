//! `portreeve address`: adds addresses and holds them, renews, removes, announces and lists them.

use std::net::IpAddr;
use std::process::ExitCode;

use portreeve::address::{AddressPage, AddressRow, Lease as Granted};
use portreeve::{AddressOptions, Client, Fault, FaultCode};
use serde_json::{Value, json};

use crate::failure::{self, Failure};
use crate::output::{self, Output, Progress};

/// The most addresses that one request names.
const BATCH: usize = 256;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Put addresses on this host until their lease ends.
    Add {
        #[command(flatten)]
        which: Which,
        /// Seconds until they go by themselves; 0 for never, where the configuration permits that.
        #[arg(long, value_name = "SECONDS")]
        lease: Option<u32>,
        /// How often to ask first whether another host has them, 200 ms each.
        #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=3))]
        probes: u8,
        /// Do not tell the neighbours.
        #[arg(long)]
        quiet: bool,
    },
    /// Begin their lease anew.
    Renew {
        #[command(flatten)]
        which: Which,
        /// Seconds from now; as long as the last time otherwise.
        #[arg(long, value_name = "SECONDS")]
        lease: Option<u32>,
    },
    /// Take them away, with their listeners and connections.
    Remove(Which),
    /// Take them to another interface of this host.
    Move {
        #[command(flatten)]
        which: Which,
        /// The interface.
        #[arg(long, value_name = "INTERFACE")]
        to: String,
    },
    /// Tell the neighbours again.
    Announce(Which),
    /// Show what the broker has put on interfaces.
    List,
}

impl Verb {
    /// How many addresses it is about.
    fn count(&self) -> usize {
        match self {
            Verb::Add { which, .. }
            | Verb::Renew { which, .. }
            | Verb::Move { which, .. }
            | Verb::Remove(which)
            | Verb::Announce(which) => which.addresses.len(),
            Verb::List => 0,
        }
    }
}

#[derive(clap::Args)]
struct Which {
    /// The addresses.
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<IpAddr>,
    /// The number of this ownership, from whoever decides which host has them.
    #[arg(long, default_value_t = 0, value_name = "N")]
    epoch: u64,
}

pub async fn run(client: &Client, out: Output, arguments: Arguments) -> Result<ExitCode, Failure> {
    let mut done = Vec::new();
    let mut progress = Progress::of(arguments.verb.count());
    match arguments.verb {
        Verb::List => return list(client, out).await,
        Verb::Add { which, lease, probes, quiet } => {
            let mut options = AddressOptions::new().epoch(which.epoch).probes(probes).announce(!quiet);
            options.lease = lease;
            for batch in which.addresses.chunks(BATCH) {
                done.extend(rows(batch, client.add_addresses(batch, &options).await?, leased));
                progress.done(done.len());
            }
        }
        Verb::Renew { which, lease } => {
            for batch in which.addresses.chunks(BATCH) {
                done.extend(rows(batch, client.renew_addresses(batch, lease, which.epoch).await?, leased));
                progress.done(done.len());
            }
        }
        Verb::Move { which, to } => {
            for batch in which.addresses.chunks(BATCH) {
                done.extend(rows(batch, client.move_addresses(batch, &to, which.epoch).await?, leased));
                progress.done(done.len());
            }
        }
        Verb::Announce(which) => {
            for batch in which.addresses.chunks(BATCH) {
                done.extend(rows(batch, client.announce_addresses(batch, which.epoch).await?, leased));
                progress.done(done.len());
            }
        }
        Verb::Remove(which) => {
            for batch in which.addresses.chunks(BATCH) {
                let removed = client.remove_addresses(batch, which.epoch).await?;
                done.extend(rows(
                    batch,
                    removed,
                    |removed| json!({ "address": removed.address, "verified": removed.verified }),
                ));
                progress.done(done.len());
            }
        }
    }
    drop(progress);
    let faults: Vec<&Value> = done.iter().filter_map(|row| row.get("fault")).collect();
    let code = match faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => failure::of_faults(faults.iter().all(|fault| *fault == FaultCode::Denied.name())),
    };
    if out.json {
        out.value(&Value::Array(done))?;
    } else {
        for row in &done {
            out.text(sentence(row))?;
        }
    }
    Ok(code)
}

fn rows<T>(asked: &[IpAddr], results: Vec<Result<T, Fault>>, show: impl Fn(T) -> Value) -> Vec<Value> {
    let row = |(index, result): (usize, Result<T, Fault>)| {
        let mut row = match result {
            Ok(done) => show(done),
            Err(fault) => json!({ "fault": fault.code.name(), "message": fault.to_string() }),
        };
        // What follows the addresses that were asked for names itself.
        if let (Some(row), Some(address)) = (row.as_object_mut(), asked.get(index)) {
            row.insert("address".to_owned(), json!(address));
        }
        row
    };
    results.into_iter().enumerate().map(row).collect()
}

fn leased(lease: Granted) -> Value {
    json!({
        "address": lease.address,
        "interface": lease.interface.as_str(),
        "prefix": lease.prefix,
        // Absent for ever.
        "remaining_ms": Some(lease.remaining_ms).filter(|left| *left < u64::MAX),
        "epoch": lease.epoch,
        "follows": lease.follows,
    })
}

fn sentence(row: &Value) -> String {
    let text = |name: &str| {
        row.get(name).map_or_else(String::new, |value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    };
    let address = text("address");
    match (row.get("message"), row.get("verified")) {
        (Some(_), _) if row.get("address").is_none() => text("message"),
        (Some(_), _) => format!("{address}: {}", text("message")),
        (_, Some(Value::Bool(true))) => format!("{address} is gone"),
        (_, Some(_)) => format!("{address} was removed, and this host has it still, on another interface"),
        _ => {
            let left = row.get("remaining_ms").and_then(Value::as_u64);
            let left =
                left.map_or_else(|| "ever".to_owned(), |left| format!("{:.1} s", left as f64 / 1000.0));
            format!("{address}/{} is on {} for {left}", text("prefix"), text("interface"))
        }
    }
}

async fn list(client: &Client, out: Output) -> Result<ExitCode, Failure> {
    let (fenced, rows) = all(client).await?;
    if out.json {
        out.value(&json!({ "fenced": fenced, "addresses": values(&rows) }))?;
        return Ok(ExitCode::SUCCESS);
    }
    out.text(shown(&rows, fenced))?;
    if !fenced {
        output::note("no fence: an orphaned address may answer a little longer than its lease");
    }
    Ok(ExitCode::SUCCESS)
}

/// Every address of the broker, and whether a fence ends their leases.
pub async fn all(client: &Client) -> Result<(bool, Vec<AddressRow>), portreeve::Error> {
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let AddressPage { fenced, addresses, more } = client.addresses(after).await?;
        rows.extend(addresses.into_vec());
        after = rows.last().map(|row: &AddressRow| row.lease.address);
        if !more {
            return Ok((fenced, rows));
        }
    }
}

/// The rows as JSON.
pub fn values(rows: &[AddressRow]) -> Vec<Value> {
    let row = |row: &AddressRow| {
        let mut shown = leased(row.lease.clone());
        if let Some(shown) = shown.as_object_mut() {
            shown.extend([
                ("holder".to_owned(), json!(row.holder.as_str())),
                ("present".to_owned(), json!(row.present)),
            ]);
        }
        shown
    };
    rows.iter().map(row).collect()
}

/// The rows as a table.
pub fn shown(rows: &[AddressRow], fenced: bool) -> String {
    let mut table = output::table(["ADDRESS", "INTERFACE", "LEFT", "EPOCH", "HOLDER", "STATE"]);
    for row in rows {
        table.add_row([
            format!("{}/{}", row.lease.address, row.lease.prefix),
            row.lease.interface.to_string(),
            match row.lease.remaining_ms {
                u64::MAX => "for ever".to_owned(),
                left => format!("{:.1} s", left as f64 / 1000.0),
            },
            row.lease.epoch.to_string(),
            row.holder.to_string(),
            match (row.present, fenced) {
                (false, _) => "missing",
                (true, true) => "fenced",
                (true, false) => "not fenced",
            }
            .to_owned(),
        ]);
    }
    output::render(table)
}
