//! `portreeve link`: sets an interface up or down, or changes its MTU, and shows its state.

use std::process::ExitCode;

use clap_complete::ArgValueCandidates;
use portreeve::Client;
use serde_json::json;

use crate::arguments::number;
use crate::complete;
use crate::failure::Failure;
use crate::output::Output;

#[derive(clap::Args)]
pub struct Arguments {
    /// The interface.
    #[arg(add = ArgValueCandidates::new(complete::interfaces))]
    interface: String,
    #[command(subcommand)]
    change: Change,
}

#[derive(clap::Subcommand)]
enum Change {
    /// Set the interface up.
    Up,
    /// Set the interface down.
    Down,
    /// Set the MTU of the interface.
    Mtu {
        /// The MTU in bytes.
        #[arg(value_name = "BYTES", value_parser = number::<u32>("MTU"))]
        mtu: u32,
    },
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let (up, mtu) = match arguments.change {
        Change::Up => (Some(true), None),
        Change::Down => (Some(false), None),
        Change::Mtu { mtu } => (None, Some(mtu)),
    };
    let link = client.set_link(&arguments.interface, up, mtu).await?;
    if out.json {
        out.value(&json!({
            "interface": link.interface.as_str(),
            "index": link.index,
            "up": link.up,
            "carrier": link.carrier,
            "mtu": link.mtu,
        }))?;
    } else {
        let state = if link.up { "up" } else { "down" };
        let carrier = if link.carrier { "carrier" } else { "no carrier" };
        out.text(format_args!("{}: {state}, {carrier}, MTU {}", link.interface, link.mtu))?;
    }
    Ok(ExitCode::SUCCESS)
}
