//! `portreeve cluster move, unpin, drain, undrain, freeze, thaw, evict`: orders to the cluster, through the coordinator of this
//! host.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap_complete::ArgValueCandidates;
use portreeve_coordinator::control::{Done, Fault, FaultCode, Request, Response};
use portreeve_coordinator::core::report::{Status, Step};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::coordinator::{Client, unexpected};
use super::status::fetch;
use crate::arguments::{address, seconds};
use crate::complete;
use crate::failure::Failure;
use crate::output::{self, Output};

/// How often the status is read while an order is waited for.
const POLL: Duration = Duration::from_millis(250);

/// What a pin does, for --help.
const MOVE: &str = "\
The pin counts more than the preference of the configuration and than
`portreeve cluster freeze`, as long as the node can hold the address. If
it cannot, the address goes where it would go without the pin, and comes
back when the node can. When the pin ends, the address stays where it
is, unless the configuration prefers another node.";

#[derive(clap::Args)]
#[command(after_long_help = MOVE)]
pub struct Move {
    /// The address.
    #[arg(value_parser = address, add = ArgValueCandidates::new(complete::cluster_addresses))]
    address: IpAddr,
    /// The node that gets it.
    #[arg(add = ArgValueCandidates::new(complete::nodes))]
    node: String,
    /// How long the pin lasts, such as 10m or 1h; without it until `portreeve cluster unpin`.
    #[arg(long = "for", value_name = "TIME", value_parser = seconds("--for", 1..=31_536_000))]
    lasts: Option<u32>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(clap::Args)]
pub struct Unpin {
    /// The address.
    #[arg(value_parser = address, add = ArgValueCandidates::new(complete::cluster_addresses))]
    address: IpAddr,
}

/// What draining does, for --help.
const DRAIN: &str = "\
The node hands its addresses over to the others at once, each after its
broker has removed it, and gets no other until `portreeve cluster
undrain`. It stays in the cluster. An address that no other node can
hold stays, unless --release is given.";

#[derive(clap::Args)]
#[command(after_long_help = DRAIN)]
pub struct Drain {
    /// The node.
    #[arg(add = ArgValueCandidates::new(complete::nodes))]
    node: String,
    /// Why, for those who see it later.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    why: String,
    /// Also give up addresses that no other node can hold. Nobody has them then.
    #[arg(long)]
    release: bool,
    #[command(flatten)]
    wait: Wait,
}

#[derive(clap::Args)]
pub struct Undrain {
    /// The node.
    #[arg(add = ArgValueCandidates::new(complete::nodes))]
    node: String,
}

#[derive(clap::Args)]
pub struct Freeze {
    /// Why, for those who see it later.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    why: String,
}

/// What eviction risks, for --help.
const EVICT: &str = "\
A node that shows no life is evicted by the others when its lease has
ended, by the kernel of its host, on every address. This command does
not wait for that. So it is for a host that is powered off for certain,
by hand or by a fencing device: if it runs, two hosts answer for its
addresses until its lease ends. A host that showed life within half of
its lease is not evicted.";

#[derive(clap::Args)]
#[command(after_long_help = EVICT)]
pub struct Evict {
    /// The node.
    #[arg(add = ArgValueCandidates::new(complete::nodes))]
    node: String,
    /// The host of the node is powered off. If it still runs, two hosts answer for its addresses.
    #[arg(long)]
    powered_off: bool,
}

#[derive(clap::Args)]
pub struct Wait {
    /// Wait until it is done, for TIME at most [default: 60]; the exit code is 1 if it is not.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "60", value_parser = seconds("--wait", 1..=86_400))]
    wait: Option<u32>,
}

pub async fn pin(client: &Client, out: Output, arguments: &Move) -> Result<ExitCode, Failure> {
    let (address, node) = (arguments.address, arguments.node.as_str());
    let for_ms = arguments.lasts.map(|seconds| u64::from(seconds) * 1_000);
    let done = give(client, &Request::Move { address, node: node.into(), for_ms }).await?;
    let is_done = |status: &Status| {
        let row = status.addresses.iter().find(|row| row.address == address);
        row.is_some_and(|row| {
            row.owner.as_deref() == Some(node) && matches!(row.step, None | Some(Step::Held))
        })
    };
    finish(client, out, &done, &arguments.wait, is_done, &format!("{address} is not on {node}")).await
}

pub async fn unpin(client: &Client, out: Output, arguments: &Unpin) -> Result<ExitCode, Failure> {
    show(out, &give(client, &Request::Unpin { address: arguments.address }).await?)
}

pub async fn drain(client: &Client, out: Output, arguments: &Drain) -> Result<ExitCode, Failure> {
    let Drain { node, why, release, wait } = arguments;
    let request = Request::Drain { node: node.as_str().into(), why: why.clone(), release: *release };
    let done = give(client, &request).await?;
    let is_done = |status: &Status| {
        let row = status.nodes.iter().find(|row| *row.name == **node);
        row.is_none_or(|row| row.addresses == 0)
    };
    finish(client, out, &done, wait, is_done, &format!("{node} still has addresses")).await
}

pub async fn undrain(client: &Client, out: Output, arguments: &Undrain) -> Result<ExitCode, Failure> {
    show(out, &give(client, &Request::Undrain { node: arguments.node.as_str().into() }).await?)
}

pub async fn freeze(client: &Client, out: Output, arguments: &Freeze) -> Result<ExitCode, Failure> {
    show(out, &give(client, &Request::Freeze { why: arguments.why.clone() }).await?)
}

pub async fn thaw(client: &Client, out: Output) -> Result<ExitCode, Failure> {
    show(out, &give(client, &Request::Thaw {}).await?)
}

pub async fn evict(client: &Client, out: Output, arguments: &Evict) -> Result<ExitCode, Failure> {
    let request = Request::Evict { node: arguments.node.as_str().into(), powered_off: arguments.powered_off };
    show(out, &give(client, &request).await?)
}

async fn give(client: &Client, request: &Request) -> Result<Done, Failure> {
    match client.ask(request).await? {
        Response::Done(done) => Ok(done),
        _ => Err(unexpected()),
    }
}

fn show(out: Output, done: &Done) -> Result<ExitCode, Failure> {
    if out.json {
        out.value(&json!(done))?;
    } else {
        out.text(&done.text)?;
        done.warnings.iter().for_each(|warning| output::note(format_args!("warning: {warning}")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits, if that is wanted, until the status shows that the order has had its effect.
async fn finish(
    client: &Client,
    out: Output,
    done: &Done,
    wait: &Wait,
    is_done: impl Fn(&Status) -> bool,
    otherwise: &str,
) -> Result<ExitCode, Failure> {
    let Some(seconds) = wait.wait else { return show(out, done) };
    let end = Instant::now() + Duration::from_secs(seconds.into());
    while !is_done(&fetch(client).await?) {
        if Instant::now() >= end {
            let message = format!("the order is in force, but {otherwise} after {seconds} s");
            let remedy = "`portreeve cluster explain ADDRESS` shows why and what happens next";
            return Err(Failure::Coordinator(Fault::new(FaultCode::Refused, message, remedy)));
        }
        sleep(POLL).await;
    }
    show(out, done)
}
