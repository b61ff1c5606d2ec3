//! Addresses that move between hosts: what listeners, bindings and the topology say about each other.

use std::collections::HashMap;
use std::net::IpAddr;

use super::binding::Binding;
use super::cidr::never_ours;
use super::diagnostic::Problems;
use super::duravip::DuraVip;
use super::listener::Listener;
use super::nearest::nearest;
use super::source::{Sources, Span, Spanned};
use super::typed::Config;

/// Checks the addresses that move, and declares each of them wherever it stands: an address that is DuraVIP
/// on one service is DuraVIP on all.
pub(super) fn config(config: &mut Config, sources: &Sources, problems: &mut Problems) {
    let bindings = Bindings::of(&config.bindings);
    for listener in &config.listeners {
        let (span, duravip) = (listener.endpoint.span, &listener.duravip);
        let inet = listener.endpoint.value.inet();
        let address = inet.map(|inet| inet.address).filter(|address| !address.is_unspecified());
        options(duravip, problems);
        if duravip.moves() && address.is_none() {
            let message = format!("{} has no address that could move", listener.endpoint.value);
            problems.error(span, message, "name one address, or remove enable_duravip and duravip_follow");
        }
        if let (Some(target), Some(address)) = (&duravip.follow, address) {
            follow(target, address, &bindings, problems);
        }
    }
    for binding in &config.bindings {
        options(&binding.duravip, problems);
        if let Some(follow) = &binding.duravip.follow {
            let message = "a binding follows nobody: listeners follow bindings";
            problems.error(follow.span, message, "put duravip_follow in the listen scope");
        }
        // A mistake in the address was told already.
        if binding.duravip.enable && binding.address.is_none() && !problems.any_error() {
            let message = format!("the binding {:?} has no address that could move", binding.name.value);
            problems.error(binding.name.span, message, "write bind_address = ADDRESS in it");
        }
    }
    one_way(config, sources, problems);
    for (address, span) in config.moving_addresses() {
        place(config, address, span, problems);
    }
    preferences(config, sources, problems);
    everywhere(config);
}

/// What one scope's options say about each other.
fn options(duravip: &DuraVip, problems: &mut Problems) {
    match (&duravip.follow, &duravip.preference) {
        (Some(follow), _) if duravip.enable => problems.error(
            follow.span,
            "what follows a binding is not itself enable_duravip",
            "remove enable_duravip or duravip_follow; one may come from the listener scope around",
        ),
        (Some(_), Some(preference)) => problems.error(
            preference.span,
            "what follows a binding has no preference of its own",
            "remove duravip_preference, or set it in the binding",
        ),
        (None, Some(preference)) if !duravip.enable => problems.warning(
            preference.span,
            "a preference has no effect on an address that does not move",
            "write enable_duravip = true, or remove it",
        ),
        _ => {}
    }
}

/// The bindings by what a follower may call them.
struct Bindings<'b> {
    names: HashMap<&'b str, &'b Binding>,
    addresses: HashMap<IpAddr, &'b Binding>,
}

impl<'b> Bindings<'b> {
    fn of(bindings: &'b [Binding]) -> Self {
        let name = |binding: &'b Binding| (binding.name.value.as_str(), binding);
        let address = |binding: &'b Binding| Some((binding.address.as_ref()?.value, binding));
        Bindings {
            names: bindings.iter().map(name).collect(),
            addresses: bindings.iter().filter_map(address).collect(),
        }
    }

    fn find(&self, target: &str) -> Option<&'b Binding> {
        let named = self.names.get(target);
        named.or_else(|| self.addresses.get(&target.parse().ok()?)).copied()
    }
}

/// A follower names a binding, by name or address, that moves and has another address.
fn follow(target: &Spanned<String>, own: IpAddr, bindings: &Bindings<'_>, problems: &mut Problems) {
    let Some(binding) = bindings.find(&target.value) else {
        let names = bindings.names.keys().copied().take(if problems.is_full() { 0 } else { usize::MAX });
        let help = match nearest(&target.value, names) {
            Some(meant) => format!("did you mean {meant:?}? Names of bindings are case-sensitive"),
            None => "name a binding that there is, or its bind_address".to_owned(),
        };
        let message = format!("there is no binding {:?} to follow", target.value);
        return problems.error(target.span, message, help);
    };
    if !binding.duravip.enable {
        let message = format!("the binding {:?} does not move, so nothing follows it", target.value);
        problems.error(target.span, message, "write enable_duravip = true in that binding");
    }
    if binding.address.as_ref().is_some_and(|address| address.value == own) {
        let message = format!("the binding {:?} has this listener's own address", target.value);
        problems.error(target.span, message, "write enable_duravip = true in place of duravip_follow");
    }
}

/// An address that follows another has nothing else that moves it.
fn one_way(config: &Config, sources: &Sources, problems: &mut Problems) {
    let mut by_itself: HashMap<IpAddr, Span> = HashMap::new();
    let enabled = |listener: &&Listener| listener.duravip.enable && listener.duravip.follow.is_none();
    for listener in config.listeners.iter().filter(enabled) {
        let inet = listener.endpoint.value.inet();
        by_itself.extend(inet.map(|inet| (inet.address, listener.endpoint.span)));
    }
    let bindings = config.bindings.iter().filter(|binding| binding.duravip.enable);
    by_itself
        .extend(bindings.filter_map(|binding| binding.address.as_ref()).map(|own| (own.value, own.span)));
    let mut followed: HashMap<IpAddr, (IpAddr, Span)> = HashMap::new();
    for (own, leader, span) in config.follows() {
        let other = by_itself.get(&own).map(|place| (format!("{own} is itself enable_duravip"), *place));
        let (first, place) = *followed.entry(own).or_insert((leader, span));
        let other =
            other.or_else(|| (first != leader).then(|| (format!("{own} follows {first} too"), place)));
        if let Some((message, place)) = other {
            let help = format!("have it move one way: the other is at {}", sources.file_line(place));
            problems.error(span, message, help);
        }
    }
}

impl Config {
    /// The addresses that follow another one, each with that one and where it says so.
    pub fn follows(&self) -> Vec<(IpAddr, IpAddr, Span)> {
        let bindings = Bindings::of(&self.bindings);
        let follows = |listener: &Listener| {
            let own = listener.endpoint.value.inet()?.address;
            let target = listener.duravip.follow.as_ref()?;
            let leader = bindings.find(&target.value)?.address.as_ref()?.value;
            (own != leader).then_some((own, leader, target.span))
        };
        self.listeners.iter().filter_map(follows).collect()
    }
}

/// An address that moves can be any host's, and the topology says where it goes.
fn place(config: &Config, address: IpAddr, span: Span, problems: &mut Problems) {
    if let Some(why) = never_ours(address) {
        if !address.is_unspecified() {
            problems.error(span, format!("{address} cannot move between hosts"), why);
        }
    } else if config.cluster.block_of(address).is_none() {
        let message = format!("no topology says on which interface {address} belongs");
        let help =
            "add a topology \"ADDRESS/PREFIX\" { interface = \"eth1\" } that holds it to the cluster scope";
        problems.error(span, message, help);
    }
}

/// Whoever names an address's preferred node names the same.
fn preferences(config: &Config, sources: &Sources, problems: &mut Problems) {
    let listeners = config.listeners.iter().filter_map(|listener| {
        let inet = listener.endpoint.value.inet()?;
        Some((inet.address, listener.duravip.preference.as_ref()?))
    });
    let bindings = config.bindings.iter().filter_map(|binding| {
        let address = binding.address.as_ref()?;
        Some((address.value, binding.duravip.preference.as_ref()?))
    });
    let mut seen: HashMap<IpAddr, &Spanned<String>> = HashMap::new();
    for (address, preference) in listeners.chain(bindings) {
        let first = *seen.entry(address).or_insert(preference);
        if first.value != preference.value {
            let message = format!("{address} would rather be on {:?} by another scope", first.value);
            let help = format!("name one node: the other is named at {}", sources.file_line(first.span));
            problems.error(preference.span, message, help);
        }
    }
}

/// Marks every listener and binding of an address that moves.
fn everywhere(config: &mut Config) {
    let moving: std::collections::HashSet<IpAddr> =
        config.moving_addresses().map(|(address, _)| address).collect();
    for listener in &mut config.listeners {
        let inet = listener.endpoint.value.inet();
        if inet.is_some_and(|inet| moving.contains(&inet.address)) && !listener.duravip.moves() {
            listener.duravip.enable = true;
        }
    }
    for binding in &mut config.bindings {
        let address = binding.address.as_ref().map(|address| address.value);
        if address.is_some_and(|address| moving.contains(&address)) && !binding.duravip.moves() {
            binding.duravip.enable = true;
        }
    }
}
