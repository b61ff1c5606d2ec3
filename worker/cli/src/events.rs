//! `portreeve events`: the recent events that the broker remembers, and new ones as they happen.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use humantime::format_rfc3339_millis;
use portreeve::{Client, Event, EventCode};
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::output::{self, Output, render, table};

#[derive(clap::Args)]
pub struct Arguments {
    /// Show new events as well, until interrupted; with --json one value per line.
    #[arg(short, long)]
    follow: bool,
    /// Show only events of the addresses and interfaces of this user.
    #[arg(long)]
    own: bool,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    if !arguments.follow {
        let events = client.recent_events(!arguments.own).await?;
        if out.json {
            out.value(&json!({ "events": events.iter().map(value).collect::<Vec<_>>() }))?;
        } else {
            let mut rows = table(["TIME", "EVENT", "SUBJECT", ""]);
            rows.add_rows(events.iter().map(row));
            out.text(render(rows))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut events = client.events(!arguments.own).await?;
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            () = output::reader_closed() => return Ok(ExitCode::SUCCESS),
        };
        match out.json {
            true => out.value(&value(&event))?,
            false => {
                let [time, event, subject, detail] = row(&event);
                out.text(format!("{time}  {event:16}  {subject}  {detail}").trim_end())?;
            }
        }
    }
}

fn value(event: &Event) -> Value {
    let mut fields = Map::new();
    let mut field = |name: &str, value: Value, present: bool| {
        if present {
            fields.insert(name.to_owned(), value);
        }
    };
    field("event", event.code.name().into(), true);
    field("code", u16::from(event.code).into(), true);
    field("number", event.number.into(), event.number > 0);
    field("time_ms", event.time_ms.into(), event.time_ms > 0);
    field("address", json!(event.address), event.address.is_some());
    field("interface", event.interface.as_str().into(), !event.interface.is_empty());
    field("index", event.index.into(), event.index > 0);
    field("pid", event.pid.into(), event.pid > 0);
    field("epoch", event.epoch.into(), event.epoch > 0);
    field("count", event.count.into(), event.count > 0);
    field("detail", event.detail.as_str().into(), !event.detail.is_empty());
    Value::Object(fields)
}

fn row(event: &Event) -> [String; 4] {
    let subject = match (event.address, event.interface.is_empty(), event.pid) {
        (Some(address), false, _) => format!("{address} on {}", event.interface),
        (Some(address), true, _) => address.to_string(),
        (None, false, _) => event.interface.to_string(),
        (None, true, 0) => String::new(),
        (None, true, pid) => format!("pid {pid}"),
    };
    let text = event.detail.to_string();
    let detail = match event.code {
        EventCode::Gap => format!("{} events lost", event.count),
        EventCode::AddressConflict => format!("also used by host {text}"),
        EventCode::AddressLeaving => format!("removed in {} ms", event.count),
        EventCode::AddressMoved => format!("from {text}"),
        EventCode::LinkRenamed => format!("renamed from {text}"),
        EventCode::WorkerStarted if event.count > 0 => format!("restart {}", event.count),
        EventCode::Other(number) => format!("code {number} {text}"),
        _ => text,
    };
    let time = match event.time_ms {
        0 => "-".to_owned(),
        since_1970 => format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(since_1970)).to_string(),
    };
    [time, event.code.name().to_owned(), subject, detail]
}
