//! Checks of floating (DuraVIP) addresses across listeners, bindings and the topology.

use std::collections::HashMap;
use std::net::IpAddr;

use super::binding::Binding;
use super::cidr::not_manageable;
use super::diagnostic::Problems;
use super::duravip::DuraVip;
use super::listener::Listener;
use super::nearest::nearest;
use super::pace::Pace;
use super::source::{Sources, Span, Spanned};
use super::typed::Config;

/// Checks floating addresses, and marks every service at such an address: an address that is DuraVIP for one
/// service is DuraVIP for all.
pub(super) async fn config(config: &mut Config, sources: &Sources, problems: &mut Problems, pace: &Pace) {
    let bindings = Bindings::of(&config.bindings);
    pace.pause().await;
    for listener in &config.listeners {
        let (span, duravip) = (listener.endpoint.span, &listener.duravip);
        let inet = listener.endpoint.value.inet();
        let address = inet.map(|inet| inet.address).filter(|address| !address.is_unspecified());
        options(duravip, problems);
        if duravip.floats() && address.is_none() {
            let message = format!("{} has no single address that could float", listener.endpoint.value);
            problems.error(span, message, "name one address, or remove enable_duravip and duravip_follow");
        }
        if let (Some(target), Some(address)) = (&duravip.follow, address) {
            follow(target, address, &bindings, problems);
        }
        pace.pause().await;
    }
    for binding in &config.bindings {
        options(&binding.duravip, problems);
        if let Some(follow) = &binding.duravip.follow {
            let message = "duravip_follow has no meaning in a binding: listeners follow bindings";
            problems.error(follow.span, message, "write duravip_follow in the listen scope");
        }
        // A mistake in the address has been reported already.
        if binding.duravip.enable && binding.address.is_none() && !problems.any_error() {
            let message = format!("the binding {:?} has no address that could float", binding.name.value);
            problems.error(binding.name.span, message, "write bind_address = ADDRESS in it");
        }
        pace.pause().await;
    }
    single_reason(config, sources, problems);
    pace.pause().await;
    for (address, span) in config.floating_addresses() {
        place(config, address, span, problems);
        pace.pause().await;
    }
    preferences(config, sources, problems);
    pace.pause().await;
    mark_shared(config);
}

/// Checks the DuraVIP options of one scope against each other.
fn options(duravip: &DuraVip, problems: &mut Problems) {
    match (&duravip.follow, &duravip.preference) {
        (Some(follow), _) if duravip.enable => problems.error(
            follow.span,
            "duravip_follow and enable_duravip exclude each other",
            "remove one of them; one may be inherited from the enclosing listener scope",
        ),
        (Some(_), Some(preference)) => problems.error(
            preference.span,
            "duravip_follow and duravip_preference exclude each other",
            "remove duravip_preference, or set it in the binding",
        ),
        (None, Some(preference)) if !duravip.enable => problems.warning(
            preference.span,
            "duravip_preference has no effect without enable_duravip",
            "write enable_duravip = true, or remove it",
        ),
        _ => {}
    }
}

/// The bindings, by the names and addresses that duravip_follow can use.
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

/// duravip_follow must name a binding, by name or address, that floats and has another address.
fn follow(target: &Spanned<String>, address: IpAddr, bindings: &Bindings<'_>, problems: &mut Problems) {
    let Some(binding) = bindings.find(&target.value) else {
        let names = bindings.names.keys().copied().take(if problems.is_full() { 0 } else { usize::MAX });
        let help = match nearest(&target.value, names) {
            Some(meant) => format!("did you mean {meant:?}? Names of bindings are case-sensitive"),
            None => "name an existing binding, or its bind_address".to_owned(),
        };
        let message = format!("there is no binding {:?}", target.value);
        return problems.error(target.span, message, help);
    };
    if !binding.duravip.enable {
        let message = format!("the binding {:?} does not float, so nothing can follow it", target.value);
        problems.error(target.span, message, "write enable_duravip = true in that binding");
    }
    if binding.address.as_ref().is_some_and(|other| other.value == address) {
        let message = format!("the binding {:?} has the same address as this listener", target.value);
        problems.error(target.span, message, "write enable_duravip = true instead of duravip_follow");
    }
}

/// An address that follows another one must not float for a second reason.
fn single_reason(config: &Config, sources: &Sources, problems: &mut Problems) {
    let mut enabled_addresses: HashMap<IpAddr, Span> = HashMap::new();
    let enabled = |listener: &&Listener| listener.duravip.enable && listener.duravip.follow.is_none();
    for listener in config.listeners.iter().filter(enabled) {
        let inet = listener.endpoint.value.inet();
        enabled_addresses.extend(inet.map(|inet| (inet.address, listener.endpoint.span)));
    }
    let bindings = config.bindings.iter().filter(|binding| binding.duravip.enable);
    enabled_addresses.extend(
        bindings.filter_map(|binding| binding.address.as_ref()).map(|address| (address.value, address.span)),
    );
    let mut followed: HashMap<IpAddr, (IpAddr, Span)> = HashMap::new();
    for (address, leader, span) in config.follows() {
        let other = enabled_addresses
            .get(&address)
            .map(|place| (format!("{address} also has enable_duravip"), *place));
        let (first, place) = *followed.entry(address).or_insert((leader, span));
        let other =
            other.or_else(|| (first != leader).then(|| (format!("{address} also follows {first}"), place)));
        if let Some((message, place)) = other {
            let help = format!("keep one of them; the other is at {}", sources.file_line(place));
            problems.error(span, message, help);
        }
    }
}

impl Config {
    /// The addresses that follow another one: follower, leader, and the place of duravip_follow.
    pub fn follows(&self) -> Vec<(IpAddr, IpAddr, Span)> {
        let bindings = Bindings::of(&self.bindings);
        let follows = |listener: &Listener| {
            let address = listener.endpoint.value.inet()?.address;
            let target = listener.duravip.follow.as_ref()?;
            let leader = bindings.find(&target.value)?.address.as_ref()?.value;
            (address != leader).then_some((address, leader, target.span))
        };
        self.listeners.iter().filter_map(follows).collect()
    }
}

/// A floating address must be valid on any host, and the topology must name its interface.
fn place(config: &Config, address: IpAddr, span: Span, problems: &mut Problems) {
    if let Some(remedy) = not_manageable(address) {
        if !address.is_unspecified() {
            problems.error(span, format!("{address} cannot float between hosts"), remedy);
        }
    } else if config.cluster.block_of(address).is_none() {
        let message = format!("no topology scope names an interface for {address}");
        let help = "add topology \"ADDRESS/PREFIX\" { interface = \"eth1\" } for a block that contains it to the cluster scope";
        problems.error(span, message, help);
    }
}

/// All scopes that name a preferred node for an address must name the same one.
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
            let message = format!("another scope names {:?} as the preferred node of {address}", first.value);
            let help = format!(
                "name the same node in both; the other scope is at {}",
                sources.file_line(first.span)
            );
            problems.error(preference.span, message, help);
        }
    }
}

/// Marks every listener and binding at a floating address.
fn mark_shared(config: &mut Config) {
    let floating: std::collections::HashSet<IpAddr> =
        config.floating_addresses().map(|(address, _)| address).collect();
    for listener in &mut config.listeners {
        let inet = listener.endpoint.value.inet();
        if inet.is_some_and(|inet| floating.contains(&inet.address)) && !listener.duravip.floats() {
            listener.duravip.enable = true;
        }
    }
    for binding in &mut config.bindings {
        let address = binding.address.as_ref().map(|address| address.value);
        if address.is_some_and(|address| floating.contains(&address)) && !binding.duravip.floats() {
            binding.duravip.enable = true;
        }
    }
}
