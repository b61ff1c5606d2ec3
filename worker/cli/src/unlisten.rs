//! `portreeve unlisten`: stops listeners by number.

use std::process::ExitCode;

use clap_complete::ArgValueCandidates;
use portreeve::{Client, ListenerId};
use serde_json::json;

use crate::arguments::number;
use crate::complete;
use crate::failure::Failure;
use crate::output::{self, Output};

/// Maximum number of listeners in one request.
pub const MAX_BATCH: usize = 253;

#[derive(clap::Args)]
pub struct Arguments {
    /// Numbers of listeners, as `portreeve status` shows them.
    #[arg(required = true, value_name = "ID", value_parser = number::<u64>("ID"), add = ArgValueCandidates::new(complete::listeners))]
    listeners: Vec<u64>,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let ids: Vec<_> = arguments.listeners.iter().copied().map(ListenerId).collect();
    let (mut unknown, mut not_revoked): (Vec<u64>, Vec<u64>) = Default::default();
    for batch in ids.chunks(MAX_BATCH) {
        let reply = client.stop(batch).await?;
        unknown.extend(reply.unknown.iter().map(|id| id.0));
        not_revoked.extend(reply.not_revoked.iter().map(|id| id.0));
    }
    let stopped: Vec<u64> = arguments.listeners.iter().copied().filter(|id| !unknown.contains(id)).collect();
    let not_revoked_lines = not_revoked.iter().map(|id| {
        let message = format!(
            "not revoked: {id}: a process that keeps a copy of the socket can listen on it again; see portreeve status"
        );
        ("not-revoked", message)
    });
    let unknown_lines =
        unknown.iter().map(|id| ("not-found", format!("no such listener, or not yours: {id}")));
    let failures: Vec<(&str, String)> = not_revoked_lines.chain(unknown_lines).collect();
    if out.json {
        let mut shown = json!({ "stopped": stopped, "unknown": unknown, "not_revoked": not_revoked });
        if let (Some(shown), Some((code, message))) = (shown.as_object_mut(), failures.first()) {
            shown.insert("error".to_owned(), json!({ "code": code, "message": message }));
        }
        out.value(&shown)?;
    } else {
        for id in stopped {
            out.text(format_args!("stopped: {id}"))?;
        }
        failures.iter().for_each(|(_, message)| output::error(message));
    }
    Ok(if unknown.is_empty() && not_revoked.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
