//! `portreeve worker`: shows the broker's worker, restarts it, and sends signals to it.

use std::process::ExitCode;
use std::str::FromStr as _;

use nix::sys::signal::Signal;
use portreeve::Client;
use portreeve::worker::WorkerStatus;
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Output, duration};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Show whether the worker runs, how often it was restarted, and how the one before it ended.
    Status,
    /// Stop the worker and start it again; its listeners stay open meanwhile. Returns when the new one runs.
    Restart,
    /// Send a signal to the worker process.
    Signal {
        /// The name, with or without SIG, or the number, as in signal(7).
        #[arg(value_name = "SIGNAL", value_parser = signal)]
        signal: u8,
    },
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let status = match arguments.action {
        Action::Status => client.worker().await?,
        Action::Restart => client.restart_worker().await?,
        Action::Signal { signal } => {
            let pid = client.signal_worker(signal).await?;
            match out.json {
                true => out.value(&json!({ "pid": pid, "signal": signal }))?,
                false => out.text(format_args!("sent signal {signal} to process {pid}"))?,
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    match out.json {
        true => out.value(&json!(status))?,
        false => out.text(text(&status))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(status: &WorkerStatus) -> String {
    let seconds = |milliseconds: u64| duration(milliseconds / 1000);
    let mut text = format!("{} for {}", status.state, seconds(status.state_ms));
    if status.pid != 0 {
        text += &format!(", process {}", status.pid);
    }
    if &*status.state == "waiting" {
        text += &format!(", to be started in {} ms", status.next_start_ms);
    }
    text += &format!(", restarts: {}", status.restarts);
    if !status.last_ending.is_empty() {
        text += &format!("\nthe one before it {}", status.last_ending);
    }
    if status.left != 0 {
        text += &format!("\nprocesses that earlier workers left: {}", status.left);
    }
    text
}

/// A signal's number, from its name or number.
fn signal(text: &str) -> Result<u8, String> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let number = text.parse().ok().or_else(|| Signal::from_str(&name).ok().map(|signal| signal as i32));
    number.and_then(|number| u8::try_from(number).ok()).filter(|number| (1..=64).contains(number)).ok_or_else(
        || "not a signal; write a name as in signal(7), for example HUP, or a number from 1 to 64".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_or_a_number() {
        for (text, number) in [("HUP", 1), ("SIGUSR1", 10), ("usr2", 12), ("15", 15), ("64", 64)] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for text in ["0", "65", "-1", "", "SIG", "nothing", "RTMIN"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
