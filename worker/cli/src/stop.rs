//! `portreeve stop`: takes listeners out of service by number.

use std::process::ExitCode;

use portreeve::{Client, ListenerId};
use serde_json::json;

use crate::failure::Failure;
use crate::output::Output;

/// The most listeners that one request can stop.
pub const BATCH: usize = 253;

#[derive(clap::Args)]
pub struct Arguments {
    /// The listeners' numbers, as `portreeve status` shows them.
    #[arg(required = true, value_name = "ID")]
    listeners: Vec<u64>,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let asked: Vec<_> = arguments.listeners.iter().copied().map(ListenerId).collect();
    let mut unknown = Vec::new();
    for batch in asked.chunks(BATCH) {
        unknown.extend(client.stop(batch).await?.unknown.into_vec().into_iter().map(|id| id.0));
    }
    let stopped: Vec<u64> = arguments.listeners.iter().copied().filter(|id| !unknown.contains(id)).collect();
    if out.json {
        out.value(&json!({ "stopped": stopped, "unknown": unknown }))?;
    } else {
        for id in stopped {
            out.text(format_args!("{id} is out of service"))?;
        }
        for id in &unknown {
            out.text(format_args!("{id} is no listener that you may stop"))?;
        }
    }
    Ok(if unknown.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
