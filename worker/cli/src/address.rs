//! `portreeve address`: adds, renews, moves, announces, removes and lists addresses.

use std::net::IpAddr;
use std::process::ExitCode;

use portreeve::address::{AddressPage, AddressRow, Bounds, Lease as Granted, RenewedAll};
use portreeve::{AddressOptions, Client, Fault, FaultCode};
use serde_json::{Value, json};

use crate::failure::{self, Failure};
use crate::output::{self, Output, Progress};

/// Maximum number of addresses in one request.
const MAX_BATCH: usize = 256;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Add addresses to this host until their lease ends.
    Add {
        #[command(flatten)]
        targets: Targets,
        /// Length of the lease in seconds; 0 for permanent addresses, which need a permit.
        #[arg(long, value_name = "SECONDS")]
        lease: Option<u32>,
        /// End of the lease in place of its length, in nanoseconds of CLOCK_BOOTTIME.
        #[arg(long, value_name = "NANOSECONDS", conflicts_with = "lease")]
        until: Option<u64>,
        /// Number of probes for another host that has an address, 200 ms each.
        #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=3))]
        probes: u8,
        /// Do not announce the addresses to the neighbours.
        #[arg(long)]
        quiet: bool,
    },
    /// Restart the leases of addresses.
    Renew {
        #[command(flatten)]
        targets: Targets,
        /// Length of the lease in seconds [default: as before].
        #[arg(long, value_name = "SECONDS")]
        lease: Option<u32>,
        /// End of the lease in place of its length, in nanoseconds of CLOCK_BOOTTIME.
        #[arg(long, value_name = "NANOSECONDS", conflicts_with = "lease")]
        until: Option<u64>,
    },
    /// Restart the leases of all addresses of this user.
    RenewAll {
        /// Length of the leases in seconds [default: the configured length].
        #[arg(long, value_name = "SECONDS")]
        lease: Option<u32>,
        /// End of the leases in place of their length, in nanoseconds of CLOCK_BOOTTIME.
        #[arg(long, value_name = "NANOSECONDS", conflicts_with = "lease")]
        until: Option<u64>,
    },
    /// Remove addresses, with their listeners and connections.
    Remove(Targets),
    /// Move addresses to another interface of this host.
    Move {
        #[command(flatten)]
        targets: Targets,
        /// The interface.
        #[arg(long, value_name = "INTERFACE")]
        to: String,
    },
    /// Announce addresses to the neighbours again.
    Announce(Targets),
    /// List the addresses of the broker.
    List,
}

impl Action {
    /// Number of addresses of the request.
    fn count(&self) -> usize {
        match self {
            Action::Add { targets, .. }
            | Action::Renew { targets, .. }
            | Action::Move { targets, .. }
            | Action::Remove(targets)
            | Action::Announce(targets) => targets.addresses.len(),
            Action::List | Action::RenewAll { .. } => 0,
        }
    }
}

#[derive(clap::Args)]
struct Targets {
    /// The addresses.
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<IpAddr>,
    /// Epoch of the ownership, from the cluster manager that decides which host has the addresses.
    #[arg(long, default_value_t = 0, value_name = "N")]
    epoch: u64,
}

pub async fn run(client: &Client, out: Output, arguments: Arguments) -> Result<ExitCode, Failure> {
    let mut done = Vec::new();
    let mut progress = Progress::new(arguments.action.count());
    match arguments.action {
        Action::List => return list(client, out).await,
        Action::Add { targets, lease, until, probes, quiet } => {
            let mut options = AddressOptions::new().epoch(targets.epoch).probes(probes).announce(!quiet);
            (options.lease, options.until) = (lease, until);
            for batch in targets.addresses.chunks(MAX_BATCH) {
                done.extend(rows(batch, client.add_addresses(batch, &options).await?, leased));
                progress.update(done.len());
            }
        }
        Action::RenewAll { lease, until } => return renew_all(client, out, lease, until).await,
        Action::Renew { targets, lease, until } => {
            for batch in targets.addresses.chunks(MAX_BATCH) {
                let renewed = match until {
                    Some(until) => client.renew_addresses_until(batch, until, targets.epoch).await?,
                    None => client.renew_addresses(batch, lease, targets.epoch).await?,
                };
                done.extend(rows(batch, renewed, leased));
                progress.update(done.len());
            }
        }
        Action::Move { targets, to } => {
            for batch in targets.addresses.chunks(MAX_BATCH) {
                done.extend(rows(batch, client.move_addresses(batch, &to, targets.epoch).await?, leased));
                progress.update(done.len());
            }
        }
        Action::Announce(targets) => {
            for batch in targets.addresses.chunks(MAX_BATCH) {
                done.extend(rows(batch, client.announce_addresses(batch, targets.epoch).await?, leased));
                progress.update(done.len());
            }
        }
        Action::Remove(targets) => {
            for batch in targets.addresses.chunks(MAX_BATCH) {
                let removed = client.remove_addresses(batch, targets.epoch).await?;
                done.extend(rows(
                    batch,
                    removed,
                    |removed| json!({ "address": removed.address, "verified": removed.verified }),
                ));
                progress.update(done.len());
            }
        }
    }
    drop(progress);
    let faults: Vec<&Value> = done.iter().filter_map(|row| row.get("fault")).collect();
    let code = match faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => failure::batch_code(faults.iter().all(|fault| *fault == FaultCode::Denied.name())),
    };
    if out.json {
        out.value(&Value::Array(done))?;
    } else {
        for row in &done {
            out.text(describe(row))?;
        }
    }
    Ok(code)
}

fn rows<T>(requested: &[IpAddr], results: Vec<Result<T, Fault>>, show: impl Fn(T) -> Value) -> Vec<Value> {
    let row = |(index, result): (usize, Result<T, Fault>)| {
        let mut row = match result {
            Ok(done) => show(done),
            Err(fault) => json!({ "fault": fault.code.name(), "message": fault.to_string() }),
        };
        // Results of addresses that follow the requested ones are at the end, and have their own address.
        if let (Some(row), Some(address)) = (row.as_object_mut(), requested.get(index)) {
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
        // Absent if the address is permanent.
        "remaining_ms": Some(lease.remaining_ms).filter(|remaining| *remaining < u64::MAX),
        "epoch": lease.epoch,
        "follows": lease.follows,
    })
}

/// One line for a result.
fn describe(row: &Value) -> String {
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
        (_, Some(Value::Bool(true))) => format!("{address} was removed"),
        (_, Some(_)) => {
            format!("{address} was removed, but this host may still have it on another interface")
        }
        _ => {
            let remaining = row.get("remaining_ms").and_then(Value::as_u64);
            let time = match remaining {
                Some(remaining) => format!("for {:.1} s", remaining as f64 / 1000.0),
                None => "permanently".to_owned(),
            };
            format!("{address}/{} is on {} {time}", text("prefix"), text("interface"))
        }
    }
}

async fn renew_all(
    client: &Client,
    out: Output,
    lease: Option<u32>,
    until: Option<u64>,
) -> Result<ExitCode, Failure> {
    let renewed = match until {
        Some(until) => client.renew_all_until(until).await?,
        None => client.renew_all(lease).await?,
    };
    let RenewedAll { now, deadline, renewed, not_renewed, bounds } = renewed;
    if out.json {
        out.value(&json!({
            "renewed": renewed,
            "not_renewed": not_renewed,
            "now_ns": now,
            "deadline_ns": deadline,
            "ipv4_fenced": bounds.ipv4_fenced,
            "ipv6_fenced": bounds.ipv6_fenced,
        }))?;
    } else {
        let remaining = deadline.saturating_sub(now) as f64 / 1e9;
        out.text(format!("{renewed} addresses are renewed for {remaining:.1} s"))?;
    }
    let none = renewed == 0 && not_renewed > 0;
    if not_renewed > 0 {
        output::note(format!(
            "{not_renewed} addresses are not renewed: permanent, expired, being added, missing, or without a permit; see `portreeve address list`"
        ));
    }
    Ok(if none { failure::batch_code(false) } else { ExitCode::SUCCESS })
}

async fn list(client: &Client, out: Output) -> Result<ExitCode, Failure> {
    let list = AddressList::fetch(client).await?;
    if out.json {
        let mut shown = json!({ "fenced": list.fenced, "addresses": list.values() });
        if let (Some(shown), Some(bounds)) = (shown.as_object_mut(), list.bounds) {
            shown.insert("ipv4_fenced".to_owned(), json!(bounds.ipv4_fenced));
            shown.insert("ipv6_fenced".to_owned(), json!(bounds.ipv6_fenced));
        }
        out.value(&shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    out.text(address_table(&list.rows, list.fenced))?;
    if !list.fenced {
        output::note(
            "no fence: if the broker is killed, an address may stay reachable for a short time after its lease",
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Every address of the broker.
pub struct AddressList {
    /// Whether a fence ends the leases of these addresses.
    pub fenced: bool,
    /// The addresses.
    pub rows: Vec<AddressRow>,
    /// The end of each lease in nanoseconds of CLOCK_BOOTTIME; empty if the broker does not tell.
    deadlines: Vec<u64>,
    /// What ends leases if the broker does not.
    bounds: Option<Bounds>,
}

impl AddressList {
    /// Fetches it.
    pub async fn fetch(client: &Client) -> Result<Self, portreeve::Error> {
        let mut list = Self { fenced: true, rows: Vec::new(), deadlines: Vec::new(), bounds: None };
        loop {
            let after = list.rows.last().map(|row: &AddressRow| row.lease.address);
            let AddressPage { fenced, addresses, more, times } = client.addresses(after).await?;
            list.rows.extend(addresses.into_vec());
            if let Some(times) = times.0 {
                list.deadlines.extend(times.leases.deadlines.into_vec());
                list.bounds = Some(times.bounds);
            }
            list.fenced &= fenced;
            if !more {
                return Ok(list);
            }
        }
    }

    /// The rows as JSON.
    fn values(&self) -> Vec<Value> {
        let mut rows = values(&self.rows);
        for (row, deadline) in rows.iter_mut().zip(&self.deadlines) {
            if let Some(row) = row.as_object_mut() {
                // Null if the address is permanent.
                row.insert(
                    "deadline_ns".to_owned(),
                    json!(Some(deadline).filter(|deadline| **deadline < u64::MAX)),
                );
            }
        }
        rows
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
pub fn address_table(rows: &[AddressRow], fenced: bool) -> String {
    let mut table = output::table(["ADDRESS", "INTERFACE", "REMAINING", "EPOCH", "HOLDER", "STATE"]);
    for row in rows {
        table.add_row([
            format!("{}/{}", row.lease.address, row.lease.prefix),
            row.lease.interface.to_string(),
            match row.lease.remaining_ms {
                u64::MAX => "permanent".to_owned(),
                remaining => format!("{:.1} s", remaining as f64 / 1000.0),
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
