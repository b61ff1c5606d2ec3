//! Every address of the broker: `portreeve address list`, and a part of `portreeve status`.

use std::process::ExitCode;

use portreeve::Client;
use portreeve::address::{AddressPage, AddressRow, Bounds};
use serde_json::{Value, json};

use super::leased;
use crate::failure::Failure;
use crate::output::{self, Output};

pub async fn list(client: &Client, out: Output) -> Result<ExitCode, Failure> {
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
