//! `portreeve stop`: stops listeners by number.

use std::process::ExitCode;

use portreeve::{Client, ListenerId};
use serde_json::json;

use crate::failure::Failure;
use crate::output::Output;

/// Maximum number of listeners in one request.
pub const MAX_BATCH: usize = 253;

#[derive(clap::Args)]
pub struct Arguments {
    /// Numbers of listeners, as `portreeve status` shows them.
    #[arg(required = true, value_name = "ID")]
    listeners: Vec<u64>,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let ids: Vec<_> = arguments.listeners.iter().copied().map(ListenerId).collect();
    let mut unknown = Vec::new();
    for batch in ids.chunks(MAX_BATCH) {
        unknown.extend(client.stop(batch).await?.unknown.into_vec().into_iter().map(|id| id.0));
    }
    let stopped: Vec<u64> = arguments.listeners.iter().copied().filter(|id| !unknown.contains(id)).collect();
    if out.json {
        out.value(&json!({ "stopped": stopped, "unknown": unknown }))?;
    } else {
        for id in stopped {
            out.text(format_args!("stopped: {id}"))?;
        }
        for id in &unknown {
            out.text(format_args!("no such listener, or not yours: {id}"))?;
        }
    }
    Ok(if unknown.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
