//! `portreeve cluster status`: this node, the engine, every node and every address, and what needs attention.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use portreeve_coordinator::control::{Request, Response};
use portreeve_coordinator::core::record::{NodeState, Order};
use portreeve_coordinator::core::report::{
    AddressRow, BrokerState, Membership, NodeRow, Pin, Problem, Status, Step, ThisNode,
};
use serde_json::json;
use tokio::signal::unix::SignalKind;
use tokio::time::interval;

use super::coordinator::{Client, unexpected};
use crate::arguments::seconds;
use crate::failure::Failure;
use crate::output::{self, Output, Style, duration, render, table};
use crate::{listen, watch};

/// What the columns and states mean, for --help.
const NOTES: &str = "\
ADDRESSES has how many addresses a node has, and of how many that belong
to it if that is another number. LAST BEAT is how long ago this node saw
a node's beat, IN SESSION since when it saw the node in the cluster.

The state of an address:
  held               its node has it
  held, moves        it belongs to another node, and moves there
  unowned            no node has it
  being added        the broker of this host is adding it
  being handed over  the broker of this host is removing it
  not added          this node owns it, but its broker does not have it
  broker disconnected

SINCE is a time if this coordinator saw the change, or else the revision
of the engine. `portreeve cluster explain ADDRESS` has all about one.";

#[derive(clap::Args)]
#[command(after_long_help = NOTES)]
pub struct Arguments {
    /// Show the status every SECONDS seconds, until interrupted [default: 2]; with --json one value per line.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds("--watch", 1..=86_400))]
    watch: Option<u32>,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Some(every) = arguments.watch else {
        let status = fetch(client).await?;
        match out.json {
            true => out.value(&json!(status))?,
            false => out.text(text(&status))?,
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut interrupt = listen::signals(SignalKind::interrupt())?;
    let mut ticks = interval(Duration::from_secs(every.into()));
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
            () = output::reader_closed() => return Ok(ExitCode::SUCCESS),
        }
        match fetch(client).await {
            Ok(status) if out.json => out.value(&json!(status))?,
            Ok(status) => watch::show(&text(&status))?,
            Err(failure) if out.json => out.value(&failure.value())?,
            Err(failure) if io::stdout().is_terminal() => watch::show(&failure.line())?,
            Err(failure) => output::error(failure.line()),
        }
    }
}

pub async fn fetch(client: &Client) -> Result<Status, Failure> {
    match client.ask(&Request::Status {}).await? {
        Response::Status(status) => Ok(*status),
        _ => Err(unexpected()),
    }
}

fn text(status: &Status) -> String {
    let mut parts = vec![head(status)];
    if !status.problems.is_empty() {
        let problems: Vec<String> = status.problems.iter().map(problem).collect();
        parts.push(problems.join("\n"));
    }
    if !status.nodes.is_empty() {
        let mut rows = table(["NODE", "STATE", "ADDRESSES", "LAST BEAT", "IN SESSION", "VERSION", ""]);
        rows.add_rows(status.nodes.iter().map(node));
        parts.push(render(rows));
    }
    if !status.engine.endpoints.is_empty() {
        let mut rows = table(["ENGINE", "STATE", "VERSION"]);
        rows.add_rows(status.engine.endpoints.iter().map(|endpoint| {
            let state = if endpoint.is_up { "replies" } else { "does not reply" };
            let state = match endpoint.state.as_str() {
                "" => state.to_owned(),
                more => format!("{state}: {more}"),
            };
            [endpoint.url.clone(), state, dash(&endpoint.version)]
        }));
        parts.push(render(rows));
    }
    parts.push(addresses(&status.addresses));
    parts.join("\n\n")
}

fn addresses(addresses: &[AddressRow]) -> String {
    if addresses.is_empty() {
        return "no node declares an address".to_owned();
    }
    let mut rows = table(["ADDRESS", "NODE", "STATE", "SINCE", "EPOCH", "BELONGS TO"]);
    rows.add_rows(addresses.iter().map(address));
    render(rows)
}

fn head(status: &Status) -> String {
    let ThisNode { name, state, why, session_ms, lease_left_ms, lease_ms, heartbeat_ms, patience_ms, .. } =
        &status.node;
    let node = match (status.node.membership, state) {
        (Membership::Member, Some(state)) => {
            let since =
                session_ms.map_or(String::new(), |ms| format!(", in session for {}", duration(ms / 1_000)));
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            format!("{}{why}{since}", state_name(*state))
        }
        (Membership::Member, None) => "in the cluster".to_owned(),
        (Membership::Outside, _) => "not in the cluster".to_owned(),
        (Membership::Refused, _) => format!("must not join: {why}"),
        (Membership::Left, _) => "left the cluster".to_owned(),
    };
    let mut lines = vec![format!("group {}, node {name}: {node}", status.group)];
    let settings = format!(
        "lease {}, beat every {}, evicted {} after the last one",
        short(*lease_ms),
        short(*heartbeat_ms),
        short(*patience_ms)
    );
    lines.push(match lease_left_ms {
        Some(left) => {
            let unless = match status.node.is_holding {
                true => "unless a beat succeeds or all who could take them promise again not to",
                false => "unless a beat succeeds",
            };
            format!("addresses end in {} {unless} ({settings})", short(*left))
        }
        None => settings,
    });
    if let Some(left) = status.node.quarantine_ms {
        lines.push(format!("claims nothing for {}, because it joined recently", short(left)));
    }
    let answered = match status.engine.answered_ms {
        Some(ago) => format!("answered {} ago, revision {}", short(ago), status.engine.revision),
        None => "has not answered yet".to_owned(),
    };
    let broker = match status.node.broker {
        BrokerState::Connected => "connected",
        BrokerState::Hanging => "does not answer",
        BrokerState::Disconnected => "not connected",
    };
    let fence = match status.node.is_fenced {
        Some(true) => ", ends addresses with the packet filter",
        Some(false) => ", without packet filter",
        None => "",
    };
    lines.push(format!("engine: {answered}; broker: {broker}{fence}"));
    lines.join("\n")
}

fn problem(problem: &Problem) -> String {
    let text = format!("warning: {}. {}", problem.text, problem.remedy);
    Style::Warning.on(&io::stdout(), text.trim_end())
}

fn node(row: &NodeRow) -> [String; 7] {
    let count = match row.belongs == row.addresses {
        true => row.addresses.to_string(),
        false => format!("{} of {}", row.addresses, row.belongs),
    };
    let beat = match (row.beat_ms, row.evict_ms) {
        (None, _) => "-".to_owned(),
        (Some(ago), Some(left)) if ago > left => format!("{} ago, evicted in {}", short(ago), short(left)),
        (Some(ago), _) => format!("{} ago", short(ago)),
    };
    let session = row.session_ms.map_or("-".to_owned(), |ms| duration(ms / 1_000));
    let mut notes = Vec::new();
    if !row.why.is_empty() {
        notes.push(row.why.clone());
    }
    if let Some(order) = &row.drain {
        notes.push(format!("drained{}", given(order)));
    }
    if row.differs {
        notes.push("declares other addresses".to_owned());
    }
    if !row.down.is_empty() {
        notes.push(format!("down: {}", row.down.join(" ")));
    }
    if !row.refused.is_empty() {
        notes.push(format!("{} addresses refused", row.refused.len()));
    }
    let state = state_name(row.state).to_owned();
    [row.name.to_string(), state, count, beat, session, dash(&row.version), notes.join("; ")]
}

fn address(row: &AddressRow) -> [String; 6] {
    let owner = match (&row.owner, &row.last) {
        (Some(owner), _) => owner.to_string(),
        (None, Some(last)) => format!("- (last {last})"),
        (None, None) => "-".to_owned(),
    };
    let since = match (row.since_ms, row.revision) {
        (Some(ms), _) => duration(ms / 1_000),
        (None, Some(revision)) => format!("revision {revision}"),
        (None, None) => "-".to_owned(),
    };
    let why = row.why.to_string();
    let belongs = match (&row.belongs, &row.pin) {
        (belongs, Some(pin)) => {
            let to = belongs.as_ref().filter(|node| **node != pin.node);
            let to = to.map_or(String::new(), |node| format!("{node}: {why}; "));
            format!("{to}{}", pin_text(pin))
        }
        (Some(node), None) => format!("{node}: {why}"),
        (None, None) => why,
    };
    let state = state(row).to_owned();
    let epoch = row.epoch.map_or("-".to_owned(), |epoch| epoch.to_string());
    [row.address.to_string(), owner, state, since, epoch, belongs]
}

/// How far an address is.
pub fn state(row: &AddressRow) -> &'static str {
    match (&row.owner, row.step) {
        (None, _) => "unowned",
        (Some(_), None | Some(Step::Held)) if row.owner == row.belongs => "held",
        (Some(_), None | Some(Step::Held)) => "held, moves",
        (Some(_), Some(Step::Adding)) => "being added",
        (Some(_), Some(Step::Removing)) => "being handed over",
        (Some(_), Some(Step::Unknown)) => "broker disconnected",
        (Some(_), Some(Step::Missing)) => "not added",
    }
}

pub fn pin_text(pin: &Pin) -> String {
    let by = if pin.by.is_empty() { String::new() } else { format!(" by {}", pin.by) };
    let left = pin.left_ms.map_or(String::new(), |ms| format!(" for another {}", duration(ms / 1_000)));
    format!("{}: pinned{by}{left}", pin.node)
}

fn given(order: &Order) -> String {
    let by = if order.by.is_empty() { String::new() } else { format!(" by {}", order.by) };
    let why = if order.why.is_empty() { String::new() } else { format!(" ({})", order.why) };
    format!("{by}{why}")
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Joining | NodeState::Founding => "joining",
        NodeState::Ready => "ready",
        NodeState::Sick => "sick",
        NodeState::Leaving => "leaving",
        NodeState::Gone => "gone",
    }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// A short time with one digit after the point, a long one in its largest units.
pub fn short(milliseconds: u64) -> String {
    match milliseconds {
        0..100_000 if milliseconds % 1_000 < 100 => format!("{} s", milliseconds / 1_000),
        0..100_000 => format!("{}.{} s", milliseconds / 1_000, milliseconds % 1_000 / 100),
        _ => duration(milliseconds / 1_000),
    }
}
