//! Checks across scopes: endpoints that cannot both be bound, peers that are allowed nothing.

use std::collections::HashMap;
use std::net::IpAddr;

use portreeve_protocol::Endpoint;

use super::broker::Broker;
use super::cluster::Cluster;
use super::diagnostic::Problems;
use super::listener::Listener;
use super::pattern::ListenPattern;
use super::peer::Peer;
use super::source::{Sources, Span};
use super::typed::Config;
use super::worker::Bind;

/// Checks everything but floating addresses, and what depends on which addresses float.
pub(super) fn config(config: &Config, sources: &Sources, problems: &mut Problems) {
    endpoints(config, sources, problems);
    topology(&config.cluster, sources, problems);
    permitted_addresses(config, problems);
    standard_input(config, problems);
    brokered_binds(config, problems);
    for peer in &config.broker.peers {
        ineffective_peer(peer, &config.broker, problems);
    }
}

/// Each endpoint may be configured once. Disabled listeners do not count: the MTA never bound them. A path is one endpoint,
/// whatever the type of its socket.
fn endpoints(config: &Config, sources: &Sources, problems: &mut Problems) {
    let mut seen: HashMap<&Endpoint, &Listener> = HashMap::new();
    let mut paths: HashMap<&str, (String, Span)> = HashMap::new();
    if let Some(socket) = &config.broker.socket
        && let Some(path) = socket.value.to_str()
    {
        paths.insert(path, ("the control socket".to_owned(), socket.span));
    }
    for listener in config.listeners.iter().filter(|listener| listener.socket.enable) {
        let endpoint = &listener.endpoint;
        let taken = match &endpoint.value {
            Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path) => {
                paths.insert(path.as_str(), (listener.scope.clone(), endpoint.span))
            }
            Endpoint::Tcp(_) | Endpoint::Udp(_) => {
                let first = seen.insert(&endpoint.value, listener);
                first.map(|first| (first.scope.clone(), first.endpoint.span))
            }
        };
        let Some((user, span)) = taken else { continue };
        let message = format!("{} is already used by {user}", endpoint.value);
        let place = sources.file_line(span);
        problems.error(endpoint.span, message, format!("remove one of them; the other is at {place}"));
    }
}

/// A wildcard and one of its addresses cannot both be bound, not even if one of them is limited to an interface. See ip(7),
/// bind(2) EADDRINUSE. An IPv6 wildcard of the configuration is for IPv6 alone.
pub(super) fn wildcards(listeners: &[Listener], sources: &Sources, problems: &mut Problems) {
    let inet = |listener: &Listener| match &listener.endpoint.value {
        Endpoint::Tcp(inet) => Some((false, inet.address, inet.port)),
        Endpoint::Udp(inet) => Some((true, inet.address, inet.port)),
        Endpoint::UnixStream(_) | Endpoint::UnixSeqpacket(_) => None,
    };
    let mut wildcards: HashMap<(bool, bool, u16), Span> = HashMap::new();
    for listener in listeners.iter().filter(|listener| listener.is_static()) {
        if let Some((udp, address, port)) = inet(listener).filter(|(_, address, _)| address.is_unspecified())
        {
            wildcards.insert((udp, address.is_ipv4(), port), listener.endpoint.span);
        }
    }
    for listener in listeners.iter().filter(|listener| listener.socket.enable) {
        let specific = inet(listener).filter(|(_, address, _)| !address.is_unspecified());
        let Some(wildcard) =
            specific.and_then(|(udp, address, port)| wildcards.get(&(udp, address.is_ipv4(), port)))
        else {
            continue;
        };
        let message = format!(
            "{} cannot be bound while the wildcard address at {} is",
            listener.endpoint.value,
            sources.file_line(*wildcard)
        );
        if listener.duravip.floats() {
            let message = format!("{message}: this floating address could never be added");
            let help = "name the other addresses of this host instead of the wildcard address";
            problems.error(listener.endpoint.span, message, help);
            continue;
        }
        let help = "remove it, because the wildcard address includes it; or name each address instead of the wildcard address";
        problems.error(listener.endpoint.span, message, help);
    }
}

/// The worker's standard input has to be a listener that exists whenever a worker starts.
fn standard_input(config: &Config, problems: &mut Problems) {
    let Some(stdin) = config.worker.as_ref().and_then(|worker| worker.stdin.as_ref()) else { return };
    if config.static_listener(&stdin.value).is_none() {
        let message = format!("{} is not a static listener", stdin.value);
        let help = format!("add ESMTP_Listener {{ Listen \"{}\" {{ }} }}, or remove stdin", stdin.value);
        problems.error(stdin.span, message, help);
    }
}

/// A worker with `bind = brokered` gets a listener when it binds it, which is possible for TCP and UDP only.
fn brokered_binds(config: &Config, problems: &mut Problems) {
    let worker = config.worker.as_ref().filter(|worker| worker.bind == Bind::Brokered);
    let Some(worker) = worker else { return };
    let permitted = config.broker.permits.iter().flat_map(|permit| &permit.listen);
    let mut permitted = permitted.map(|pattern| matches!(pattern.value, ListenPattern::Inet { .. }));
    let configured = || config.listeners.iter().filter(|listener| listener.socket.enable);
    if !permitted.any(|is_inet| is_inet)
        && !configured().any(|listener| listener.endpoint.value.inet().is_some())
    {
        let message = "bind = brokered has no effect: policy permits the worker no TCP or UDP listener";
        let help = "add permit \"NAME\" { listen = ( \"*:25\" ) } to the broker scope, with the endpoints that the worker binds";
        problems.warning(worker.span, message, help);
    }
    for listener in configured() {
        if listener.endpoint.value.inet().is_none() {
            let message =
                "the worker would not get this Unix socket, because bind = brokered passes no descriptors";
            let help =
                "remove it, and let the worker bind a path that it can write to; or write bind = direct";
            problems.error(listener.endpoint.span, message, help);
        }
    }
}

/// Each block may be configured once, and adding or removing one of its addresses must not affect others.
fn topology(cluster: &Cluster, sources: &Sources, problems: &mut Problems) {
    let mut seen = HashMap::new();
    for topology in &cluster.topology {
        let block = topology.block.value;
        if let Some(first) = seen.insert(block, topology.block.span) {
            let message = format!("{block} already has a topology scope");
            let help = format!("remove one of them; the other is at {}", sources.file_line(first));
            problems.error(topology.block.span, message, help);
        }
        if topology.mask < block.prefix() {
            let message = format!("cidrmask = {} is shorter than the prefix of {block}", topology.mask);
            let help = format!("write cidrmask = {}", block.bits());
            problems.error(topology.block.span, message, help);
        } else if topology.mask != block.bits() {
            let message = format!("removing one address of {block} can remove others of the same prefix");
            let help = format!("write cidrmask = {} unless this is intended", block.bits());
            problems.warning(topology.block.span, message, help);
        }
    }
}

/// An allowed address needs an interface that it can be added to.
fn permitted_addresses(config: &Config, problems: &mut Problems) {
    for block in config.broker.permits.iter().flat_map(|permit| &permit.address) {
        let mut topology = config.cluster.topology.iter().map(|topology| topology.block.value);
        let overlap = |other: super::cidr::Cidr| {
            other.contains(block.value.address()) || block.value.contains(other.address())
        };
        if !topology.any(overlap) {
            let message = format!("no topology scope names an interface for {}", block.value);
            let help =
                format!("add topology \"{}\" {{ interface = \"eth1\" }} to the cluster scope", block.value);
            problems.warning(block.span, message, help);
        }
    }
}

/// A peer scope without effect: there is no control socket, or the peer is allowed an operation without any permit.
fn ineffective_peer(peer: &Peer, broker: &Broker, problems: &mut Problems) {
    if broker.socket.is_none() {
        let message = "this peer scope has no effect: there is no control socket";
        problems.warning(peer.name.span, message, "write socket = \"/PATH\" in the broker scope");
    }
    let needs_permit = ["listen", "address", "link", "limit"];
    let word = peer.allow.iter().find(|word| needs_permit.contains(&word.value.as_str()));
    if let Some(word) = word.filter(|_| peer.permit.is_empty()) {
        let message = format!("this peer is allowed {:?}, but no permit says for what", word.value);
        let help = "add permit = ( NAME ) to this scope; configured listeners are for the worker only";
        problems.warning(word.span, message, help);
    }
}

impl Config {
    /// Errors for floating (DuraVIP) addresses that are among `host_owned`, the addresses that this host has without the
    /// broker: removing one of those could cut the host off the network.
    pub fn host_owned_errors(&self, host_owned: &[IpAddr]) -> Vec<super::diagnostic::Diagnostic> {
        let floating = self.floating_addresses();
        let taken = floating.filter(|(address, _)| host_owned.contains(address));
        taken
            .map(|(address, span)| {
                let message = format!("the DuraVIP address {address} is already configured on this host");
                self.error(
                    span,
                    message,
                    "choose an address that no host has permanently, or remove it from the interface",
                )
            })
            .collect()
    }

    /// Every floating (DuraVIP) address, at each place that declares it.
    pub fn floating_addresses(&self) -> impl Iterator<Item = (IpAddr, Span)> {
        let listeners = self.listeners.iter().filter(|listener| listener.duravip.floats());
        let listeners = listeners.filter_map(|listener| {
            let inet = listener.endpoint.value.inet()?;
            Some((inet.address, listener.endpoint.span))
        });
        let bindings = self.bindings.iter().filter(|binding| binding.duravip.floats());
        listeners.chain(bindings.filter_map(|binding| {
            let address = binding.address.as_ref()?;
            Some((address.value, address.span))
        }))
    }
}
