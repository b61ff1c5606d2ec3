//! `portreeve cluster explain`: who has an address, since when, why there, why not elsewhere, and what happens next and when.

use std::net::IpAddr;
use std::process::ExitCode;

use clap_complete::ArgValueCandidates;
use portreeve_coordinator::control::{Request, Response};
use portreeve_coordinator::core::report::{AddressRow, Choice, Explanation, Next};
use serde_json::json;

use super::coordinator::{Client, unexpected};
use super::status::{pin_text, short, state};
use crate::arguments::address;
use crate::complete;
use crate::failure::Failure;
use crate::output::{Output, duration, render, table};

#[derive(clap::Args)]
pub struct Arguments {
    /// The address.
    #[arg(value_parser = address, add = ArgValueCandidates::new(complete::cluster_addresses))]
    address: IpAddr,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Response::Explanation(explanation) =
        client.ask(&Request::Explain { address: arguments.address }).await?
    else {
        return Err(unexpected());
    };
    match out.json {
        true => out.value(&json!(explanation))?,
        false => out.text(text(&explanation))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(Explanation { row, nodes, conflict, next }: &Explanation) -> String {
    let mut lines = table(["", ""]);
    let mut line = |name: &str, value: String| {
        lines.add_row([name.to_owned(), value]);
    };
    line("address", row.address.to_string());
    line("held by", owner(row));
    line("since", since(row));
    line("belongs to", belongs(row));
    if let Some(pin) = &row.pin {
        line("pinned to", pin_text(pin));
    }
    if !conflict.is_empty() {
        let names = conflict.join(", ");
        line("preferences", format!("the nodes declare different ones, so none counts: {names}"));
    }
    for (number, next) in next.iter().enumerate() {
        line(if number == 0 { "next" } else { "" }, next_text(next));
    }
    let mut parts = vec![render(lines)];
    if !nodes.is_empty() {
        let mut rows = table(["NODE", "ADDRESSES", "CAN GET IT"]);
        rows.add_rows(nodes.iter().map(choice));
        parts.push(render(rows));
    }
    parts.join("\n\n")
}

fn owner(row: &AddressRow) -> String {
    match (&row.owner, &row.last) {
        (Some(owner), _) => format!("{owner} ({})", state(row)),
        (None, Some(last)) => format!("no node; {last} had it last"),
        (None, None) => "no node".to_owned(),
    }
}

fn since(row: &AddressRow) -> String {
    let time = row.since_ms.map(|ms| format!("{} ago, ", duration(ms / 1_000))).unwrap_or_default();
    match (row.revision, row.epoch) {
        (Some(revision), Some(epoch)) => format!("{time}revision {revision} of the engine, epoch {epoch}"),
        (Some(revision), None) => format!("{time}revision {revision} of the engine"),
        (None, _) => "it was never claimed".to_owned(),
    }
}

fn belongs(row: &AddressRow) -> String {
    match &row.belongs {
        Some(node) => format!("{node}: {}", row.why),
        None => format!("no node: {}", row.why),
    }
}

fn next_text(Next { in_ms, text }: &Next) -> String {
    match in_ms {
        Some(0) => format!("now: {text}"),
        Some(ms) => format!("in {}: {text}", short(*ms)),
        None => text.clone(),
    }
}

fn choice(Choice { node, addresses, unfit }: &Choice) -> [String; 3] {
    let can = unfit.as_ref().map_or("yes".to_owned(), |unfit| format!("no: {unfit}"));
    [node.to_string(), addresses.to_string(), can]
}
