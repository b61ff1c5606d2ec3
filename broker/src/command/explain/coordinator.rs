//! What a coordinator gets from the configuration.

use portreeve_protocol::cluster::{ClusterSettings, Engine, HealthCheck};
use serde_json::{Value, json};

/// The settings as JSON; null without an engine, because no coordinator can run then.
pub(super) fn json(settings: &ClusterSettings) -> Value {
    let Some(engine) = &settings.engine else { return Value::Null };
    let checks: Vec<Value> = settings.checks.iter().map(check_json).collect();
    json!({
        "cluster_group": settings.group,
        "nodename": settings.nodename,
        "lease_ms": settings.lease_ms,
        "heartbeat_ms": settings.heartbeat_ms,
        "view_mature_ms": settings.view_mature_ms,
        "view_balance_ms": settings.view_balance_ms,
        "duravip_balance_set_size": settings.balance_set_size,
        "failback": settings.failback.name(),
        "on_engine_loss": settings.on_engine_loss.name(),
        "peer_listen": Some(settings.peer_listen.as_str()).filter(|at| !at.is_empty()),
        "endpoints": engine.endpoints,
        "files": files(engine),
        "user": engine.user,
        "compaction": engine.compaction,
        "checks": checks,
    })
}

fn check_json(check: &HealthCheck) -> Value {
    let HealthCheck { name, command, interval_ms, fall, rise } = check;
    json!({ "name": name, "command": command, "interval_ms": interval_ms, "fall": fall, "rise": rise })
}

/// The files that the coordinator reads.
fn files(engine: &Engine) -> Vec<&str> {
    let files = [&engine.ca, &engine.certificate, &engine.key, &engine.password_file];
    files.into_iter().map(|path| path.as_str()).filter(|path| !path.is_empty()).collect()
}

/// The settings as text; `None` without an engine.
pub(super) fn text(settings: &ClusterSettings) -> Option<String> {
    let engine = settings.engine.as_ref()?;
    let mut out = format!("coordinator of the cluster {}, on node {}\n", settings.group, settings.nodename);
    let mut add = |name: &str, value: &str| out += &format!("  {name:<14}{value}\n");
    let (lease, heartbeat) = (seconds(settings.lease_ms), seconds(settings.heartbeat_ms));
    add("lease", &format!("{lease}, one heartbeat in {heartbeat}"));
    let (mature, balance) = (seconds(settings.view_mature_ms), seconds(settings.view_balance_ms));
    let moves = format!(
        "failback {}; a node counts once it was up for {mature}; at most {} addresses every {balance} to balance",
        settings.failback.name(),
        settings.balance_set_size
    );
    add("moves", &moves);
    add("engine lost", settings.on_engine_loss.name());
    if !settings.peer_listen.is_empty() {
        add("peers", &settings.peer_listen);
    }
    let mut name = "engine";
    for endpoint in &*engine.endpoints {
        add(name, &endpoint.to_string());
        name = "";
    }
    let compaction = if engine.compaction { "on" } else { "off" };
    let user = if engine.user.is_empty() { String::new() } else { format!(", user {}", engine.user) };
    add("", &format!("compaction {compaction}{user}"));
    let files = files(engine);
    if !files.is_empty() {
        add("files", &files.join(" "));
    }
    name = "checks";
    for HealthCheck { name: check, command, interval_ms, fall, rise } in &*settings.checks {
        let words: Vec<String> = command.iter().map(ToString::to_string).collect();
        let every = seconds(*interval_ms);
        add(name, &format!("{check}: {}, every {every}, fall {fall}, rise {rise}", words.join(" ")));
        name = "";
    }
    Some(out)
}

fn seconds(milliseconds: u32) -> String {
    format!("{} s", f64::from(milliseconds) / 1_000.0)
}
