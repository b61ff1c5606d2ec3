//! `portreeve cluster events`: the recent events that the coordinator remembers, and new ones as they happen.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use humantime::format_rfc3339_millis;
use portreeve_coordinator::control::{Request, Response};
use portreeve_coordinator::core::news::{Event, Kind};
use serde_json::json;

use super::coordinator::{Client, Responses, unexpected};
use crate::failure::Failure;
use crate::output::{self, Output, render, table};

/// The events, for --help.
const EVENTS: &str = "\
  address-taken    a node claimed an address that had no live owner
  address-granted  its owner handed it over
  address-released its owner gave it up
  node-joined, node-ready, node-sick, node-leaving, node-left,
  node-evicted
  session-began, session-resumed, session-lost: of this node
  holding          the engine is out, and this node keeps its addresses, as all promise
  withdrawn        this node removed its addresses before its lease
                   ended, because the engine confirmed no beat
  engine-lost, engine-back, engine-reset: it lost data
  drained, undrained, frozen, thawed, pinned, unpinned: orders
  add-refused      the broker of this host refused an address
  conflict         another host uses an address
  gap              this reader was too slow for some events

A coordinator remembers the last 256 events since it was started. For a
script: portreeve cluster events --follow --json | while read -r event";

#[derive(clap::Args)]
#[command(after_long_help = EVENTS)]
pub struct Arguments {
    /// Show new events as well, until interrupted; with --json one value per line.
    #[arg(short, long)]
    follow: bool,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let (response, responses) = client.open(&Request::Events { follow: arguments.follow }).await?;
    let Response::Events(events) = response else { return Err(unexpected()) };
    if arguments.follow {
        return follow(out, events, responses).await;
    }
    if out.json {
        out.value(&json!({ "events": events }))?;
    } else {
        let mut rows = table(["TIME", "EVENT", "SUBJECT", ""]);
        rows.add_rows(events.iter().map(row));
        out.text(render(rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn follow(out: Output, mut events: Vec<Event>, mut responses: Responses) -> Result<ExitCode, Failure> {
    loop {
        for event in &events {
            match out.json {
                true => out.value(&json!(event))?,
                false => {
                    let [time, event, subject, detail] = row(event);
                    out.text(format!("{time}  {event:16}  {subject}  {detail}").trim_end())?;
                }
            }
        }
        let next = tokio::select! {
            next = responses.next() => next?,
            () = output::reader_closed() => return Ok(ExitCode::SUCCESS),
        };
        events = match next {
            Some(Response::Events(events)) => events,
            Some(_) => return Err(unexpected()),
            None => return Err(responses.closed()),
        };
    }
}

fn row(Event { time_ms, news, .. }: &Event) -> [String; 4] {
    let subject = match (&news.address, &news.node, &news.from) {
        (Some(address), node, Some(from)) => {
            format!("{address} {from} -> {}", node.as_deref().unwrap_or("no node"))
        }
        (Some(address), Some(node), None) => format!("{address} on {node}"),
        (Some(address), None, None) => address.to_string(),
        (None, Some(node), _) => node.to_string(),
        (None, None, _) => String::new(),
    };
    let detail = match news.kind {
        Kind::Gap => format!("{} events lost", news.detail),
        _ => news.detail.clone(),
    };
    let time = format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(*time_ms)).to_string();
    [time, news.kind.name().to_owned(), subject, detail]
}
