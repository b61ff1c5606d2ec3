//! A configuration as facts: what each option of each scope comes to, by its name, so that two configurations can be
//! compared however their files are written.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};

use super::source::Spanned;
use super::{Config, DuraVip, OnNarrow, SocketOptions, Worker};

/// What is set, by the name of what says so: `broker retain` is `30`.
pub type Facts = BTreeMap<String, String>;

/// The facts of a configuration, defaults among them.
pub fn facts(config: &Config) -> Facts {
    let mut facts = Facts::new();
    security(config, &mut facts);
    config.worker.iter().for_each(|scope| worker(scope, &mut facts));
    broker(config, &mut facts);
    cluster(config, &mut facts);
    for listener in &config.listeners {
        let name = format!("{} Listen {:?}", listener.scope, listener.endpoint.value.to_string());
        let SocketOptions { enable, backlog, receive_buffer, send_buffer, no_delay, mode } = &listener.socket;
        let socket = format!(
            "enable {enable}, listen_backlog {backlog}, tcp_recv_buffer_size {receive_buffer}, \
             tcp_send_buffer_size {send_buffer}, disable_nagle_algorithm {no_delay}, file_mode {mode:04o}{}",
            duravip(&listener.duravip)
        );
        facts.insert(name, socket);
    }
    for binding in &config.bindings {
        let address = binding.address.as_ref().map_or_else(|| "none".to_owned(), |it| it.value.to_string());
        let name = format!("binding {:?}", binding.name.value);
        facts.insert(name, format!("bind_address {address}{}", duravip(&binding.duravip)));
    }
    facts
}

fn security(config: &Config, facts: &mut Facts) {
    let security = &config.security;
    let mut add = |name: &str, value: String| facts.insert(format!("security {name}"), value);
    add("user", security.user_name().to_owned());
    add("group", security.group_name().to_owned());
    add("supplemental_groups", words(&security.supplemental_groups));
    add("chroot", security.chroot.as_ref().map_or_else(String::new, |path| path.value.display().to_string()));
    add("capabilities", text(&security.capabilities));
    add("privileges", text(&security.privileges));
}

fn worker(worker: &Worker, facts: &mut Facts) {
    let Worker { command, environment, limits, restart, stable_after, stop_timeout, span: _ } = worker;
    let mut add = |name: &str, value: String| facts.insert(format!("worker {name}"), value);
    add("command", words_quoted(command.iter().map(|word| &word.value)));
    add(
        "environment",
        words_quoted(environment.iter().map(|(key, value)| format!("{}={}", key.value, value.value))),
    );
    add("limit", words(limits));
    add("restart", restart.to_string());
    add("stable_after", stable_after.as_secs().to_string());
    add("stop_timeout", stop_timeout.as_secs().to_string());
}

fn broker(config: &Config, facts: &mut Facts) {
    let broker = &config.broker;
    let mut add = |name: &str, value: String| facts.insert(format!("broker {name}"), value);
    add("socket", broker.socket.as_ref().map_or_else(String::new, |path| path.value.display().to_string()));
    add("socket_mode", format!("{:04o}", broker.socket_mode));
    add("socket_group", text(&broker.socket_group));
    add("require_landlock", broker.require_landlock.to_string());
    add("reload", broker.reload.to_string());
    add("retain", broker.retain.as_secs().to_string());
    add("lease", broker.lease.as_secs().to_string());
    let on_narrow = match broker.on_narrow {
        OnNarrow::Close => "close",
        OnNarrow::Keep => "keep",
    };
    add("on_narrow", on_narrow.to_owned());
    for (name, most) in broker.quotas.named() {
        add(name, most.to_string());
    }
    for permit in &broker.permits {
        let mut add =
            |what: &str, value| facts.insert(format!("permit {:?} {what}", permit.name.value), value);
        add("listen", words(&permit.listen));
        add("address", words(&permit.address));
        add("interface", words(&permit.interface));
        add("limit", words(&permit.limit));
    }
    for peer in &broker.peers {
        let mut add =
            |what: &str, value| facts.insert(format!("peer {:?} {what}", peer.name.value.to_string()), value);
        add("allow", words(&peer.allow));
        add("permit", words(&peer.permit));
    }
}

fn cluster(config: &Config, facts: &mut Facts) {
    let cluster = &config.cluster;
    let mut add = |name: String, value: String| facts.insert(name, value);
    add("cluster nodename".to_owned(), text(&cluster.nodename));
    add("cluster arp_all_hosts".to_owned(), cluster.arp_all_hosts.to_string());
    add("cluster if_check_interval".to_owned(), cluster.if_check_interval.as_secs().to_string());
    add("cluster if_down_limit".to_owned(), cluster.if_down_limit.to_string());
    for topology in &cluster.topology {
        let name = format!("topology \"{}\"", topology.block.value);
        add(name, format!("interface {}, cidrmask {}", topology.interface.value, topology.mask));
    }
}

fn duravip(duravip: &DuraVip) -> String {
    let mut told = String::new();
    if duravip.enable {
        told += ", enable_duravip true";
    }
    if let Some(preference) = &duravip.preference {
        told += &format!(", duravip_preference {:?}", preference.value);
    }
    if let Some(follow) = &duravip.follow {
        told += &format!(", duravip_follow {:?}", follow.value);
    }
    told
}

fn text(value: &Option<Spanned<String>>) -> String {
    value.as_ref().map_or_else(String::new, |value| value.value.clone())
}

fn words<T: Display>(values: &[Spanned<T>]) -> String {
    let words: Vec<String> = values.iter().map(|value| value.value.to_string()).collect();
    words.join(" ")
}

fn words_quoted<T: Debug>(values: impl Iterator<Item = T>) -> String {
    let words: Vec<String> = values.map(|value| format!("{value:?}")).collect();
    words.join(" ")
}
