//! Settings of the coordinator, the program that decides which node of the cluster holds which address: options and scopes
//! of the `cluster` scope that the broker checks and reports, and does not use itself.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portreeve_protocol::cluster::{Failback, MAX_KEY_PART, OnEngineLoss};

use super::engine::Engine;
use super::health_check::HealthCheck;
use super::nearest::nearest;
use super::reader::Reader;
use super::scalar::thousandths;
use super::source::{Span, Spanned};

/// The maximum of `heartbeats_per_sec` in thousandths.
const MAX_RATE: u32 = 10_000;

/// How many heartbeats there are in a lease by default.
const HEARTBEATS_IN_LEASE: u32 = 6;

/// How many heartbeats there must be in a lease, so that it outlives two lost ones. Two thirds of the shortest lease, 2 s, are
/// also enough for an engine that stalls for 1 s and an attempt that takes 0.8 s.
const MIN_HEARTBEATS_IN_LEASE: u32 = 3;

/// The options that have an effect only with an engine, without those of the MTA.
const NEED_AN_ENGINE: [&str; 4] = ["lease", "failback", "on_engine_loss", "peer_listen"];

/// The settings of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinator {
    /// The cluster's name, a part of every key in the engine; present if there is an engine.
    pub group: Option<Spanned<String>>,
    /// How long the node keeps its addresses after its last successful heartbeat.
    pub lease: Duration,
    /// The time from one heartbeat to the next, at most a third of the lease.
    pub heartbeat: Duration,
    /// How long a node that returns must be up before it counts for placement.
    pub view_mature_time: Duration,
    /// The time between two voluntary moves of a set of addresses.
    pub view_balance_interval: Duration,
    /// The maximum number of addresses that one voluntary move covers.
    pub balance_set_size: u32,
    /// Whether addresses return to a preferred node by themselves.
    pub failback: Failback,
    /// What happens to the addresses if the engine is out of reach for all nodes.
    pub on_engine_loss: OnEngineLoss,
    /// Where the coordinator accepts connections of those of other nodes.
    pub peer_listen: Option<Spanned<SocketAddr>>,
    /// The engine; `None`: no coordinator can run.
    pub engine: Option<Engine>,
    /// The checks of this node.
    pub checks: Vec<HealthCheck>,
}

impl Default for Coordinator {
    fn default() -> Self {
        let lease = Duration::from_secs(6);
        Coordinator {
            group: None,
            lease,
            heartbeat: lease / HEARTBEATS_IN_LEASE,
            view_mature_time: Duration::from_secs(5),
            view_balance_interval: Duration::from_secs(10),
            balance_set_size: 10,
            failback: Failback::default(),
            on_engine_loss: OnEngineLoss::default(),
            peer_listen: None,
            engine: None,
            checks: Vec::new(),
        }
    }
}

impl Coordinator {
    /// Reads the settings from the `cluster` scope.
    pub(crate) fn read(reader: &mut Reader<'_, '_>) -> Self {
        let default = Coordinator::default();
        let (lease, heartbeat) = lease_and_heartbeat(reader, default.lease);
        let engine = reader.scopes("engine").next();
        let engine = engine.map(|section| {
            let engine = Engine::read(Reader::new(section, reader.sources, reader.problems));
            (section.name, engine)
        });
        let coordinator = Coordinator {
            group: reader.parsed("cluster_group", key_part),
            lease,
            heartbeat,
            view_mature_time: reader
                .seconds("view_mature_time", 0..=86_400)
                .unwrap_or(default.view_mature_time),
            view_balance_interval: reader
                .seconds("view_balance_interval", 1..=86_400)
                .unwrap_or(default.view_balance_interval),
            balance_set_size: reader
                .number("duravip_balance_set_size", 1..=10_240)
                .unwrap_or(default.balance_set_size),
            failback: reader.parsed("failback", failback).map_or(default.failback, |spanned| spanned.value),
            on_engine_loss: reader
                .parsed("on_engine_loss", on_engine_loss)
                .map_or(default.on_engine_loss, |spanned| spanned.value),
            peer_listen: reader.parsed("peer_listen", peer_listen),
            checks: HealthCheck::read_all(reader),
            engine: None,
        };
        match engine {
            Some((place, engine)) => {
                needs_names(reader, place);
                let coordinator = Coordinator { engine: Some(engine), ..coordinator };
                needs_peers(reader, &coordinator);
                coordinator
            }
            None => {
                ineffective(reader);
                coordinator
            }
        }
    }
}

/// The lease, and the time from one heartbeat to the next: `heartbeats_per_sec`, or a sixth of the lease.
fn lease_and_heartbeat(reader: &mut Reader<'_, '_>, default: Duration) -> (Duration, Duration) {
    let read = reader.seconds("lease", 3..=3_600);
    let is_valid = read.is_some() || reader.section.option("lease").is_none();
    let lease = read.unwrap_or(default);
    let Some(rate) = reader.parsed("heartbeats_per_sec", rate) else {
        return (lease, whole_milliseconds(lease / HEARTBEATS_IN_LEASE));
    };
    let heartbeat = whole_milliseconds(Duration::from_secs(1_000) / rate.value);
    if is_valid && heartbeat * MIN_HEARTBEATS_IN_LEASE > lease {
        let message = format!(
            "one heartbeat in {} s is too few for a lease of {} s: two lost ones would end it",
            heartbeat.as_secs_f64(),
            lease.as_secs()
        );
        reader.error(rate.span, message, enough_heartbeats(heartbeat, lease));
    }
    (lease, heartbeat)
}

/// The precision in which the coordinator gets it.
fn whole_milliseconds(duration: Duration) -> Duration {
    Duration::new(duration.as_secs(), duration.subsec_millis() * 1_000_000)
}

/// The lowest rate for a lease, and the shortest lease for a heartbeat.
fn enough_heartbeats(heartbeat: Duration, lease: Duration) -> String {
    let thousandths = u64::from(MIN_HEARTBEATS_IN_LEASE * 1_000).div_ceil(lease.as_secs().max(1));
    let rate = format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000);
    let rate = rate.trim_end_matches('0').trim_end_matches('.');
    let seconds = (heartbeat * MIN_HEARTBEATS_IN_LEASE).as_millis().div_ceil(1_000);
    format!("write heartbeats_per_sec = {rate} or more, or lease = {seconds} or more")
}

/// Every key of the engine contains the names of the cluster and of the node.
fn needs_names(reader: &mut Reader<'_, '_>, engine: Span) {
    for (option, whose) in [
        ("cluster_group", "with the same NAME on every node"),
        ("nodename", "with a NAME that no other node has"),
    ] {
        if reader.section.option(option).is_none() {
            let help = format!("add {option} = \"NAME\" to the cluster scope, {whose}");
            reader.error(engine, format!("an engine needs {option}, a part of its keys"), help);
        }
    }
}

/// Nodes that hold their addresses ask each other, and only coordinators with a certificate accept what others send.
fn needs_peers(reader: &mut Reader<'_, '_>, coordinator: &Coordinator) {
    if coordinator.on_engine_loss == OnEngineLoss::Hold
        && let Some(option) = reader.section.option("on_engine_loss")
        && reader.section.option("peer_listen").is_none()
    {
        let message = "hold needs peer_listen: without the engine, the nodes ask each other";
        let help = "add peer_listen = \"ADDRESS:PORT\" to the cluster scope of every node, or write release";
        reader.error(option.value.span(), message, help);
    }
    let has_certificate = coordinator.engine.as_ref().is_some_and(|engine| engine.certificate.is_some());
    if let Some(at) = &coordinator.peer_listen
        && !has_certificate
        && !at.value.ip().is_loopback()
    {
        let message = "peer_listen needs a certificate: the coordinators authenticate each other";
        let help = "add ca, certificate and key to the engine scope, or listen on a loopback address";
        reader.error(at.span, message, help);
    }
}

/// Options and checks without an engine have no effect.
fn ineffective(reader: &mut Reader<'_, '_>) {
    const HELP: &str =
        "add engine { endpoints = ( \"https://HOST:2379\" ) } to the cluster scope, or remove it";
    for option in NEED_AN_ENGINE.iter().filter_map(|name| reader.section.option(name)) {
        let name = reader.sources.text(option.name);
        let message = format!("{name} of the cluster scope has no effect without an engine");
        reader.problems.warning(option.name, message, HELP);
    }
    for section in reader.section.scopes().iter().filter(|section| section.is("check", reader.sources)) {
        reader.problems.warning(section.name, "a check has no effect without an engine", HELP);
    }
}

/// Reports an option that is a scope, and names that are probably misspelt. Every other unknown name is the MTA's.
pub(super) fn misplaced_and_misspelt(reader: &mut Reader<'_, '_>) {
    const SCOPES: [(&str, &str); 3] = [
        ("engine", "engine {"),
        ("check", "check \"NAME\" {"),
        ("topology", "topology \"ADDRESS/PREFIX\" {"),
    ];
    let (section, sources) = (reader.section, reader.sources);
    let mut options: Vec<(&str, Span)> =
        section.options().map(|(name, option)| (name, option.name)).collect();
    options.sort_by_key(|(_, place)| *place);
    for (name, place) in options {
        if let Some((_, begin)) = SCOPES.iter().find(|(scope, _)| *scope == name) {
            let message = format!("{name} is a scope, not an option");
            reader.error(place, message, format!("write {begin} … }}"));
        } else if let Some(meant) = nearest(name, NEED_AN_ENGINE).filter(|meant| *meant != name) {
            let message = format!("{} is not an option of the broker and is skipped", sources.text(place));
            reader.problems.warning(place, message, format!("did you mean {meant}?"));
        }
    }
    for inner in section.scopes() {
        let name = sources.text(inner.name);
        let meant =
            nearest(name, SCOPES.map(|(scope, _)| scope)).filter(|meant| !meant.eq_ignore_ascii_case(name));
        if let Some(meant) = meant {
            let message = format!("{name:?} is not a scope of the broker and is skipped");
            reader.problems.warning(inner.name, message, format!("did you mean {meant}?"));
        }
    }
}

/// A name that is a part of the engine's keys, where slashes separate the parts.
pub(super) fn key_part(text: &str) -> Result<String, String> {
    name(text, MAX_KEY_PART)
        .ok()
        .filter(|text| !text.contains('/'))
        .ok_or_else(|| format!("write 1 to {MAX_KEY_PART} printable ASCII characters without spaces and /"))
}

/// A name of at most `max` bytes that needs no quotes anywhere.
pub(super) fn name(text: &str, max: usize) -> Result<String, String> {
    match text.len() <= max && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err(format!("write 1 to {max} printable ASCII characters without spaces")),
    }
}

/// A rate in thousandths per second.
fn rate(text: &str) -> Result<u32, String> {
    thousandths(text).filter(|rate| (1..=MAX_RATE).contains(rate)).ok_or_else(|| {
        "write a number from 0.001 to 10, such as 0.5 for one heartbeat in two seconds".to_owned()
    })
}

fn failback(text: &str) -> Result<Failback, String> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Ok(Failback::Auto),
        "manual" => Ok(Failback::Manual),
        _ => Err("write auto or manual".to_owned()),
    }
}

/// An address of this host and a port, which other nodes connect to. The error is the remedy.
fn peer_listen(text: &str) -> Result<SocketAddr, String> {
    let usable = |ip: IpAddr| !ip.is_unspecified() && !ip.is_multicast();
    let at = text.parse().ok().filter(|at: &SocketAddr| usable(at.ip()) && at.port() != 0);
    at.filter(|at| !matches!(at, SocketAddr::V6(at) if at.scope_id() != 0)).ok_or_else(|| {
        "write an address of this host that the other nodes reach, and a port, such as 192.0.2.1:7400"
            .to_owned()
    })
}

fn on_engine_loss(text: &str) -> Result<OnEngineLoss, String> {
    match text.to_ascii_lowercase().as_str() {
        "release" => Ok(OnEngineLoss::Release),
        "hold" => Ok(OnEngineLoss::Hold),
        _ => Err("write release or hold".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_text;

    fn coordinator(options: &str) -> Coordinator {
        parse_text("c.conf", &format!("cluster {{ {options} }}")).unwrap().0.cluster.coordinator
    }

    #[test]
    fn the_heartbeat_follows_the_lease_unless_it_is_set() {
        for (options, lease, heartbeat) in [
            ("", 6_000, 1_000),
            ("lease = 3", 3_000, 500),
            ("lease = 15", 15_000, 2_500),
            ("heartbeats_per_sec = 4", 6_000, 250),
            ("heartbeats_per_sec = 0.5", 6_000, 2_000),
            ("heartbeats_per_sec = 10 lease = 3600", 3_600_000, 100),
            ("heartbeats_per_sec = 0.001 lease = 3000", 3_000_000, 1_000_000),
        ] {
            let coordinator = coordinator(options);
            let read = (coordinator.lease.as_millis(), coordinator.heartbeat.as_millis());
            assert_eq!(read, (lease, heartbeat), "{options}");
        }
    }

    #[test]
    fn the_remedy_for_too_few_heartbeats_is_accepted() {
        for (rate, lease) in [("0.4", 6), ("0.333", 9), ("0.001", 2_999), ("0.9", 3), ("0.007", 7)] {
            let error = |options: &str| parse_text("c.conf", &format!("cluster {{ {options} }}")).err();
            let report = error(&format!("heartbeats_per_sec = {rate} lease = {lease}"));
            let help = report.unwrap().diagnostics()[0].help.clone();
            let rest = help.strip_prefix("write ").unwrap();
            let (faster, longer) = rest.split_once(" or more, or ").unwrap();
            assert!(error(&format!("{faster} lease = {lease}")).is_none(), "{help}");
            let longer = longer.strip_suffix(" or more").unwrap();
            assert!(error(&format!("heartbeats_per_sec = {rate} {longer}")).is_none(), "{help}");
        }
    }

    #[test]
    fn the_options_of_the_mta_alone_give_neither_error_nor_warning() {
        let text = "cluster { cluster_group = ec_cluster nodename = mx1 heartbeats_per_sec = 1 heartbeat_start_delay = 15 \
            view_mature_time = 5 view_balance_interval = 10 view_broadcast_interval = 0 duravip_balance_set_size = 10 \
            control_group = ec_console log_group = log nodeaddr = 10.0.0.1 unconditional_rebind = true \
            log_active_interval = 1 log_idle_interval = 10 if_check_interval = 30 Replicate x { } }";
        let (config, warnings) = parse_text("c.conf", text).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(config.cluster.coordinator.group.unwrap().value, "ec_cluster");
    }
}
