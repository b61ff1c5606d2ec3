//! `portreeve cluster plan`: the moves that the placement wants now, or would want without a node.

use std::process::ExitCode;

use clap_complete::ArgValueCandidates;
use portreeve_coordinator::control::{Request, Response};
use portreeve_coordinator::core::record::Name;
use portreeve_coordinator::core::report::{Load, Move, Plan};
use serde_json::json;

use super::coordinator::{Client, unexpected};
use crate::complete;
use crate::failure::Failure;
use crate::output::{Output, render, table};

#[derive(clap::Args)]
pub struct Arguments {
    /// Show what would happen if this node were not in the cluster.
    #[arg(long, value_name = "NODE", add = ArgValueCandidates::new(complete::nodes))]
    without: Option<String>,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let without = arguments.without.as_deref().map(Name::from);
    let Response::Plan(plan) = client.ask(&Request::Plan { without }).await? else {
        return Err(unexpected());
    };
    match out.json {
        true => out.value(&json!(plan))?,
        false => out.text(text(&plan))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(Plan { without, voluntary, moves, nodes }: &Plan) -> String {
    let mut parts = Vec::new();
    let condition = without.as_ref().map_or(String::new(), |node| format!(" without {node}"));
    if moves.is_empty() {
        parts.push(format!("no address would move{condition}"));
    } else {
        let mut rows = table(["ADDRESS", "FROM", "TO", "WHEN", "WHY"]);
        rows.add_rows(moves.iter().map(row));
        parts.push(render(rows));
    }
    if !voluntary {
        parts.push("voluntary moves are not allowed, so none is shown".to_owned());
    }
    let mut rows = table(["NODE", "ADDRESSES", "AFTER"]);
    rows.add_rows(
        nodes
            .iter()
            .map(|Load { node, before, after }| [node.to_string(), before.to_string(), after.to_string()]),
    );
    parts.push(render(rows));
    parts.join("\n\n")
}

fn row(Move { address, from, to, urgent, why }: &Move) -> [String; 5] {
    let name = |node: &Option<Name>| node.as_deref().unwrap_or("-").to_owned();
    let when = if *urgent { "at once" } else { "at the next interval" };
    [address.to_string(), name(from), name(to), when.to_owned(), why.to_string()]
}
