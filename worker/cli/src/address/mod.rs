//! `portreeve address`: adds, holds, renews, moves, announces, removes and lists addresses.

mod hold;
mod list;

use std::net::IpAddr;
use std::process::ExitCode;

use clap_complete::{ArgValueCandidates, CompletionCandidate};
use portreeve::address::{Lease as Granted, RenewedAll};
use portreeve::{AddressOptions, Client, Fault, FaultCode};
use serde_json::{Value, json};

pub use self::list::{AddressList, address_table, values};

use crate::arguments::{address, number, seconds};
use crate::broker::Broker;
use crate::complete;
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
        /// Length of the lease, such as 10, 10s or 2m; 0 for permanent addresses, which need a permit.
        #[arg(long, value_name = "SECONDS", value_parser = seconds("--lease", 0..=u32::MAX))]
        lease: Option<u32>,
        /// End of the lease in place of its length, in nanoseconds of CLOCK_BOOTTIME.
        #[arg(long, value_name = "NANOSECONDS", conflicts_with = "lease", value_parser = number::<u64>("--until"))]
        until: Option<u64>,
        /// Number of probes for another host that has an address, 200 ms each.
        #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=3))]
        probes: u8,
        /// Do not announce the addresses to the neighbours.
        #[arg(long)]
        quiet: bool,
    },
    /// Add addresses and renew their leases until interrupted; then remove them.
    ///
    /// Also takes over addresses that this user has added before. If an address is lost, removes the others and exits with the
    /// code of the reason.
    Hold(hold::Arguments),
    /// Restart the leases of addresses.
    Renew {
        #[command(flatten)]
        targets: Targets,
        /// Length of the lease, such as 10, 10s or 2m [default: as before].
        #[arg(long, value_name = "SECONDS", value_parser = seconds("--lease", 0..=u32::MAX))]
        lease: Option<u32>,
        /// End of the lease in place of its length, in nanoseconds of CLOCK_BOOTTIME.
        #[arg(long, value_name = "NANOSECONDS", conflicts_with = "lease", value_parser = number::<u64>("--until"))]
        until: Option<u64>,
    },
    /// Restart the leases of all addresses of this user.
    RenewAll {
        /// Length of the leases, such as 10, 10s or 2m [default: the configured length].
        #[arg(long, value_name = "SECONDS", value_parser = seconds("--lease", 0..=u32::MAX))]
        lease: Option<u32>,
        /// End of the leases in place of their length, in nanoseconds of CLOCK_BOOTTIME.
        #[arg(long, value_name = "NANOSECONDS", conflicts_with = "lease", value_parser = number::<u64>("--until"))]
        until: Option<u64>,
    },
    /// Remove addresses, with their listeners and connections.
    Remove(Targets),
    /// Move addresses to another interface of this host.
    Move {
        #[command(flatten)]
        targets: Targets,
        /// The interface.
        #[arg(long, value_name = "INTERFACE", add = ArgValueCandidates::new(complete::interfaces))]
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
            Action::List | Action::RenewAll { .. } | Action::Hold(_) => 0,
        }
    }
}

#[derive(clap::Args)]
struct Targets {
    /// The addresses.
    #[arg(required = true, value_name = "ADDRESS", value_parser = address, add = ArgValueCandidates::new(known_addresses))]
    addresses: Vec<IpAddr>,
    /// Epoch of the ownership, from the cluster manager that decides which host has the addresses.
    #[arg(long, default_value = "0", value_name = "N", value_parser = number::<u64>("--epoch"))]
    epoch: u64,
}

/// Addresses that can be added, and those that have been.
fn known_addresses() -> Vec<CompletionCandidate> {
    let mut known = complete::added_addresses();
    let floating = complete::floating_addresses().into_iter();
    let others: Vec<_> =
        floating.filter(|one| known.iter().all(|known| known.get_value() != one.get_value())).collect();
    known.extend(others);
    known
}

pub async fn run(broker: &Broker, out: Output, arguments: Arguments) -> Result<ExitCode, Failure> {
    if let Action::Hold(arguments) = &arguments.action {
        return hold::run(broker, out, arguments).await;
    }
    let client = &broker.open().await?;
    let mut batch = Batch { rows: Vec::new(), progress: Progress::new(arguments.action.count()) };
    match arguments.action {
        Action::List => return list::list(client, out).await,
        Action::RenewAll { lease, until } => return renew_all(client, out, lease, until).await,
        Action::Hold(_) => {}
        Action::Add { targets, lease, until, probes, quiet } => {
            let mut options = AddressOptions::new().epoch(targets.epoch).probes(probes).announce(!quiet);
            (options.lease, options.until) = (lease, until);
            for part in targets.addresses.chunks(MAX_BATCH) {
                batch.add(part, client.add_addresses(part, &options).await?, leased);
            }
        }
        Action::Renew { targets, lease, until } => {
            for part in targets.addresses.chunks(MAX_BATCH) {
                let renewed = match until {
                    Some(until) => client.renew_addresses_until(part, until, targets.epoch).await?,
                    None => client.renew_addresses(part, lease, targets.epoch).await?,
                };
                batch.add(part, renewed, leased);
            }
        }
        Action::Move { targets, to } => {
            for part in targets.addresses.chunks(MAX_BATCH) {
                batch.add(part, client.move_addresses(part, &to, targets.epoch).await?, leased);
            }
        }
        Action::Announce(targets) => {
            for part in targets.addresses.chunks(MAX_BATCH) {
                batch.add(part, client.announce_addresses(part, targets.epoch).await?, leased);
            }
        }
        Action::Remove(targets) => {
            for part in targets.addresses.chunks(MAX_BATCH) {
                batch.add(
                    part,
                    client.remove_addresses(part, targets.epoch).await?,
                    |removed| json!({ "address": removed.address, "verified": removed.verified }),
                );
            }
        }
    }
    batch.print(out)
}

/// The result for one address: a JSON object, or the address and the fault. The results of addresses that follow the requested
/// ones are at the end; if one of them failed, its address is in the fault's message.
type Row = Result<Value, (Option<IpAddr>, Fault)>;

/// The results of a request in several parts.
struct Batch {
    rows: Vec<Row>,
    progress: Progress,
}

impl Batch {
    fn add<T>(&mut self, requested: &[IpAddr], results: Vec<Result<T, Fault>>, show: impl Fn(T) -> Value) {
        let row = |(index, result): (usize, Result<T, Fault>)| {
            result.map(&show).map_err(|fault| (requested.get(index).copied(), fault))
        };
        self.rows.extend(results.into_iter().enumerate().map(row));
        self.progress.update(self.rows.len());
    }

    /// Prints the results, the failures on standard error, and returns the exit code.
    fn print(self, out: Output) -> Result<ExitCode, Failure> {
        let Self { rows, progress } = self;
        drop(progress);
        let faults: Vec<&Fault> = rows.iter().filter_map(|row| Some(&row.as_ref().err()?.1)).collect();
        let code = match faults.is_empty() {
            true => ExitCode::SUCCESS,
            false => failure::batch_code(faults.iter().all(|fault| fault.code == FaultCode::Denied)),
        };
        if out.json {
            out.value(&rows.iter().map(row_value).collect())?;
            return Ok(code);
        }
        for row in &rows {
            match row {
                Ok(done) => out.text(describe(done))?,
                Err((Some(address), fault)) => output::error(format_args!("{address}: {fault}")),
                Err((None, fault)) => output::error(fault),
            }
        }
        Ok(code)
    }
}

fn row_value(row: &Row) -> Value {
    match row {
        Ok(done) => done.clone(),
        Err((Some(address), fault)) => json!({ "address": address, "error": failure::fault_value(fault) }),
        Err((None, fault)) => json!({ "error": failure::fault_value(fault) }),
    }
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
fn describe(done: &Value) -> String {
    let text = |name: &str| {
        done.get(name).map_or_else(String::new, |value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    };
    let address = text("address");
    match done.get("verified") {
        Some(Value::Bool(true)) => format!("{address} was removed"),
        Some(_) => format!("{address} was removed, but this host may still have it on another interface"),
        None => {
            let time = match done.get("remaining_ms").and_then(Value::as_u64) {
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
    let none = renewed == 0 && not_renewed > 0;
    let why = format!(
        "{not_renewed} addresses are not renewed: permanent, expired, being added, missing, or without a permit; see `portreeve address list`"
    );
    if out.json {
        let mut shown = json!({
            "renewed": renewed,
            "not_renewed": not_renewed,
            "now_ns": now,
            "deadline_ns": deadline,
            "ipv4_fenced": bounds.ipv4_fenced,
            "ipv6_fenced": bounds.ipv6_fenced,
        });
        if let Some(shown) = shown.as_object_mut().filter(|_| none) {
            shown.insert("error".to_owned(), json!({ "code": "not-renewed", "message": why }));
        }
        out.value(&shown)?;
    } else {
        let remaining = deadline.saturating_sub(now) as f64 / 1e9;
        if !none {
            out.text(format!("{renewed} addresses are renewed for {remaining:.1} s"))?;
        }
        if not_renewed > 0 {
            output::note(why);
        }
    }
    Ok(if none { failure::batch_code(false) } else { ExitCode::SUCCESS })
}
