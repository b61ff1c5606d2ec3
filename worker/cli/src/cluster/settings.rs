//! `portreeve cluster settings`: what a coordinator on this host gets from the broker's configuration.

use std::process::ExitCode;

use portreeve::cluster::{ClusterSettings, Engine, HealthCheck};
use portreeve::{Client, Text};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{Output, render, table};

pub async fn run(client: &Client, out: Output) -> Result<ExitCode, Failure> {
    let settings = client.cluster_settings().await?;
    match out.json {
        true => out.value(&json(&settings))?,
        false => out.text(text(&settings))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn json(settings: &ClusterSettings) -> Value {
    let engine = |engine: &Engine| {
        json!({
            "endpoints": engine.endpoints,
            "ca": present(&engine.ca),
            "certificate": present(&engine.certificate),
            "key": present(&engine.key),
            "user": present(&engine.user),
            "password_file": present(&engine.password_file),
            "compaction": engine.compaction,
        })
    };
    json!({
        "cluster_group": present(&settings.group),
        "nodename": present(&settings.nodename),
        "lease_ms": settings.lease_ms,
        "heartbeat_ms": settings.heartbeat_ms,
        "view_mature_ms": settings.view_mature_ms,
        "view_balance_ms": settings.view_balance_ms,
        "duravip_balance_set_size": settings.balance_set_size,
        "failback": settings.failback.name(),
        "on_engine_loss": settings.on_engine_loss.name(),
        "peer_listen": present(&settings.peer_listen),
        "engine": settings.engine.as_ref().map(engine),
        "checks": settings.checks,
    })
}

fn text(settings: &ClusterSettings) -> String {
    let mut shown = table(["SETTING", "VALUE"]);
    let mut add = |name: &str, value: String| {
        shown.add_row([name, value.as_str()]);
    };
    add("cluster_group", or_none(&settings.group));
    add("nodename", or_none(&settings.nodename));
    add("lease", seconds(settings.lease_ms));
    add("heartbeat", format!("every {}", seconds(settings.heartbeat_ms)));
    add("view_mature_time", seconds(settings.view_mature_ms));
    add("view_balance_interval", seconds(settings.view_balance_ms));
    add("duravip_balance_set_size", settings.balance_set_size.to_string());
    add("failback", settings.failback.name().to_owned());
    add("on_engine_loss", settings.on_engine_loss.name().to_owned());
    add("peer_listen", or_none(&settings.peer_listen));
    match &settings.engine {
        None => add("engine", "none".to_owned()),
        Some(engine) => {
            let endpoints: Vec<String> = engine.endpoints.iter().map(ToString::to_string).collect();
            add("engine endpoints", endpoints.join(" "));
            add("engine ca", or_none(&engine.ca));
            add("engine certificate", or_none(&engine.certificate));
            add("engine key", or_none(&engine.key));
            add("engine user", or_none(&engine.user));
            add("engine password_file", or_none(&engine.password_file));
            add("engine compaction", if engine.compaction { "on" } else { "off" }.to_owned());
        }
    }
    let mut parts = vec![render(shown)];
    if !settings.checks.is_empty() {
        let mut shown = table(["CHECK", "INTERVAL", "FALL", "RISE", "COMMAND"]);
        shown.add_rows(settings.checks.iter().map(row));
        parts.push(render(shown));
    }
    parts.join("\n\n")
}

fn row(check: &HealthCheck) -> [String; 5] {
    let command: Vec<String> = check.command.iter().map(ToString::to_string).collect();
    let (name, interval) = (check.name.to_string(), seconds(check.interval_ms));
    [name, interval, check.fall.to_string(), check.rise.to_string(), command.join(" ")]
}

/// The text; `None` if it is empty, which stands for a setting that the configuration does not have.
fn present(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn or_none<const MAX: usize>(text: &Text<MAX>) -> String {
    if text.is_empty() { "none".to_owned() } else { text.to_string() }
}

fn seconds(milliseconds: u32) -> String {
    format!("{} s", f64::from(milliseconds) / 1_000.0)
}
