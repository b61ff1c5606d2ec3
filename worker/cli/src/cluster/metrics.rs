//! `portreeve cluster metrics`: the coordinator's metrics in the Prometheus text format, once or over HTTP.

use std::net::SocketAddr;
use std::process::ExitCode;

use portreeve_coordinator::control::{Request, Response};
use portreeve_coordinator::core::record::NodeState;
use portreeve_coordinator::core::report::{BrokerState, Membership, Metrics};
use serde_json::json;

use super::coordinator::{Client, unexpected};
use crate::failure::Failure;
use crate::metrics::exposition::Text;
use crate::metrics::families::{Micros, Millis};
use crate::metrics::place;
use crate::metrics::serve::{Pages, serve};
use crate::output::Output;

#[derive(clap::Args)]
pub struct Arguments {
    /// Serve the metrics at http://ADDRESS:PORT/metrics until interrupted.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "json", value_parser = place)]
    listen: Option<SocketAddr>,
}

pub async fn run(client: Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    if let Some(address) = arguments.listen {
        serve(Coordinator(client), address).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let metrics = fetch(&client).await?;
    match out.json {
        true => out.value(&json!(metrics))?,
        false => out.text(page(&metrics).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn fetch(client: &Client) -> Result<Metrics, Failure> {
    match client.ask(&Request::Metrics {}).await? {
        Response::Metrics(metrics) => Ok(*metrics),
        _ => Err(unexpected()),
    }
}

struct Coordinator(Client);

impl Pages for Coordinator {
    const SOURCE: &'static str = "coordinator";

    async fn fetch(&self) -> Result<String, String> {
        fetch(&self.0).await.map(|metrics| page(&metrics)).map_err(|failure| failure.line())
    }

    fn without(&self) -> String {
        let mut text = Text::default();
        up(&mut text, false);
        text.finish()
    }
}

fn up(text: &mut Text, up: bool) {
    text.family("portreeve_cluster_up", "gauge", "Whether the coordinator replies.")
        .sample(&[], u8::from(up));
}

fn page(metrics: &Metrics) -> String {
    let mut text = Text::default();
    up(&mut text, true);
    let node = &metrics.node;
    let labels =
        [("group", metrics.group.as_str()), ("node", &*node.name), ("version", node.version.as_str())];
    text.family("portreeve_cluster_info", "gauge", "The group and the node of the coordinator.")
        .sample(&labels, 1);
    this_node(&mut text, metrics);
    engine(&mut text, metrics);
    let mut states =
        text.family("portreeve_cluster_nodes", "gauge", "Nodes by state, as this node knows them.");
    for (state, count) in &metrics.nodes {
        states.sample(&[("state", state_name(*state))], count);
    }
    let mut gauge = |name: &str, help: &str, value: usize| {
        text.family(name, "gauge", help).sample(&[], value);
    };
    gauge(
        "portreeve_cluster_nodes_differing",
        "Nodes that declare other addresses than most.",
        metrics.differing,
    );
    gauge("portreeve_cluster_nodes_drained", "Nodes that operators have drained.", metrics.drained);
    gauge("portreeve_cluster_addresses", "Addresses that nodes declare or have.", metrics.addresses);
    gauge("portreeve_cluster_addresses_owned", "Addresses of this node.", metrics.owned);
    gauge(
        "portreeve_cluster_addresses_not_added",
        "Addresses of this node that its broker has not added.",
        metrics.not_added,
    );
    gauge("portreeve_cluster_addresses_unowned", "Addresses that no node has.", metrics.unowned);
    gauge(
        "portreeve_cluster_addresses_elsewhere",
        "Addresses that belong to another node than the one that has them.",
        metrics.elsewhere,
    );
    gauge("portreeve_cluster_pins", "Addresses that operators have pinned.", metrics.pins);
    gauge(
        "portreeve_cluster_frozen",
        "Whether an operator has stopped voluntary moves.",
        usize::from(metrics.frozen),
    );
    let mut problems = text.family(
        "portreeve_cluster_problems",
        "gauge",
        "What needs attention, by the code of portreeve cluster status.",
    );
    let mut rest = metrics.problems.as_slice();
    while let Some(first) = rest.first() {
        let (same, others) = rest.split_at(rest.iter().take_while(|code| *code == first).count());
        problems.sample(&[("code", first.name())], same.len());
        rest = others;
    }
    counters(&mut text, metrics);
    text.finish()
}

fn this_node(text: &mut Text, metrics: &Metrics) {
    let node = &metrics.node;
    let mut gauge = |name: &str, help: &str, value: bool| {
        text.family(name, "gauge", help).sample(&[], u8::from(value));
    };
    gauge(
        "portreeve_cluster_member",
        "Whether this node is in the cluster.",
        node.membership == Membership::Member,
    );
    gauge(
        "portreeve_cluster_ready",
        "Whether this node is ready to hold addresses.",
        node.state == Some(NodeState::Ready),
    );
    gauge(
        "portreeve_cluster_holding",
        "Whether this node keeps its addresses without the engine, by the promises of others.",
        node.is_holding,
    );
    gauge(
        "portreeve_cluster_broker_connected",
        "Whether the broker of this host is connected and answers.",
        node.broker == BrokerState::Connected,
    );
    if let Some(fenced) = node.is_fenced {
        gauge("portreeve_cluster_fenced", "Whether the packet filter of this host ends addresses.", fenced);
    }
    let mut time = |name: &str, help: &str, value: Option<u64>| {
        let mut family = text.family(name, "gauge", help);
        if let Some(value) = value {
            family.sample(&[], Millis(value));
        }
    };
    time("portreeve_cluster_session_seconds", "Time since this node joined.", node.session_ms);
    time("portreeve_cluster_lease_seconds", "How long a beat lasts.", Some(node.lease_ms));
    time(
        "portreeve_cluster_lease_left_seconds",
        "Time until the addresses of this node end if no beat succeeds.",
        node.lease_left_ms,
    );
}

fn engine(text: &mut Text, metrics: &Metrics) {
    let mut answered = text.family(
        "portreeve_cluster_engine_answered_seconds",
        "gauge",
        "Time since the engine's last reply.",
    );
    if let Some(ago) = metrics.answered_ms {
        answered.sample(&[], Millis(ago));
    }
    let mut endpoints = text.family(
        "portreeve_cluster_engine_endpoint_up",
        "gauge",
        "Whether an endpoint of the engine replies.",
    );
    for endpoint in &metrics.endpoints {
        endpoints.sample(&[("endpoint", &endpoint.url)], u8::from(endpoint.is_up));
    }
    text.family("portreeve_cluster_engine_requests_total", "counter", "Requests to the engine.")
        .sample(&[], metrics.requests);
    text.family(
        "portreeve_cluster_engine_requests_failed_total",
        "counter",
        "Requests to which the engine did not reply in time.",
    )
    .sample(&[], metrics.requests_failed);
    let mut latency = text.family(
        "portreeve_cluster_beat_p99_seconds",
        "gauge",
        "The time that 99 of 100 of the last beats took.",
    );
    if let Some(time) = metrics.beats.p99_us {
        latency.sample(&[], Micros(time));
    }
}

fn counters(text: &mut Text, metrics: &Metrics) {
    let (counts, beats) = (&metrics.counts, &metrics.beats);
    let mut counter = |name: &str, help: &str, value: u64| {
        text.family(name, "counter", help).sample(&[], value);
    };
    counter("portreeve_cluster_beats_total", "Beats of this node.", beats.sent);
    counter(
        "portreeve_cluster_beats_failed_total",
        "Beats to which the engine did not reply in time.",
        beats.failed,
    );
    counter(
        "portreeve_cluster_evictions_total",
        "Evictions of any node that this one saw.",
        counts.evictions,
    );
    counter(
        "portreeve_cluster_sessions_lost_total",
        "Sessions of this node that were lost.",
        counts.sessions_lost,
    );
    counter(
        "portreeve_cluster_adds_refused_total",
        "Adds that the broker of this host refused.",
        counts.refused,
    );
    let mut moves = text.family(
        "portreeve_cluster_moves_total",
        "counter",
        "Changes of the owner of an address that this node saw, by how.",
    );
    moves
        .sample(&[("how", "taken")], counts.taken)
        .sample(&[("how", "granted")], counts.granted)
        .sample(&[("how", "released")], counts.released);
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Joining => "joining",
        NodeState::Founding => "founding",
        NodeState::Ready => "ready",
        NodeState::Sick => "sick",
        NodeState::Leaving => "leaving",
        NodeState::Gone => "gone",
    }
}
