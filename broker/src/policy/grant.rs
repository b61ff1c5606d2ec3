//! A grant: a set of rules that is looked up as a whole. Single endpoints are found by hashing, what is
//! written as a pattern by trying each.

use std::collections::HashMap;
use std::net::IpAddr;

use portreeve_protocol::{Endpoint, InetEndpoint, Text};

use super::rule::RuleId;
use crate::config::{Cidr, Hosts, Limit, ListenPattern};

/// What somebody may have.
#[derive(Clone, Debug, Default)]
pub(super) struct Grant {
    endpoints: HashMap<Endpoint, RuleId>,
    patterns: Vec<(ListenPattern, RuleId)>,
    addresses: HashMap<IpAddr, RuleId>,
    blocks: Vec<(Cidr, RuleId)>,
    permanent: Vec<(Cidr, RuleId)>,
    interfaces: HashMap<String, RuleId>,
    limits: Vec<(Limit, RuleId)>,
}

impl Grant {
    /// Permits one endpoint.
    pub fn endpoint(&mut self, endpoint: Endpoint, rule: RuleId) {
        self.endpoints.insert(endpoint, rule);
    }

    /// Permits the endpoints of a pattern.
    pub fn pattern(&mut self, pattern: ListenPattern, rule: RuleId) {
        let singles = singles(&pattern);
        if singles.is_empty() {
            self.patterns.push((pattern, rule));
        }
        for endpoint in singles {
            self.endpoint(endpoint, rule);
        }
    }

    /// Permits one address.
    pub fn address(&mut self, address: IpAddr, rule: RuleId) {
        self.addresses.insert(address, rule);
    }

    /// Permits the addresses of a block.
    pub fn block(&mut self, block: Cidr, rule: RuleId) {
        match block.is_single() {
            true => self.address(block.address(), rule),
            false => self.blocks.push((block, rule)),
        }
    }

    /// Permits the addresses of a block to stay for ever.
    pub fn permanent(&mut self, block: Cidr, rule: RuleId) {
        self.permanent.push((block, rule));
    }

    /// Permits an interface.
    pub fn interface(&mut self, name: String, rule: RuleId) {
        self.interfaces.insert(name, rule);
    }

    /// Permits a resource limit and every lower one.
    pub fn limit(&mut self, limit: Limit, rule: RuleId) {
        self.limits.push((limit, rule));
    }

    /// Permits what another grant permits.
    pub fn join(&mut self, other: &Grant) {
        self.endpoints.extend(other.endpoints.iter().map(|(k, v)| (k.clone(), *v)));
        self.patterns.extend_from_slice(&other.patterns);
        self.addresses.extend(&other.addresses);
        self.blocks.extend_from_slice(&other.blocks);
        self.permanent.extend_from_slice(&other.permanent);
        self.interfaces.extend(other.interfaces.iter().map(|(k, v)| (k.clone(), *v)));
        self.limits.extend_from_slice(&other.limits);
    }

    /// The rule that permits a well-formed endpoint.
    pub fn find_endpoint(&self, endpoint: &Endpoint) -> Option<RuleId> {
        let exact = self.endpoints.get(endpoint).copied();
        exact.or_else(|| first(&self.patterns, |pattern| pattern.matches(endpoint)))
    }

    /// The rule that permits an address.
    pub fn find_address(&self, address: IpAddr) -> Option<RuleId> {
        let exact = self.addresses.get(&address).copied();
        exact.or_else(|| first(&self.blocks, |block| block.contains(address)))
    }

    /// The rule that permits an address to stay for ever.
    pub fn find_permanent(&self, address: IpAddr) -> Option<RuleId> {
        first(&self.permanent, |block| block.contains(address))
    }

    /// The rule that permits an interface.
    pub fn find_interface(&self, name: &str) -> Option<RuleId> {
        self.interfaces.get(name).copied()
    }

    /// The rule that permits a resource limit.
    pub fn find_limit(&self, asked: &Limit) -> Option<RuleId> {
        first(&self.limits, |limit| limit.covers(asked))
    }

    /// Whether it permits any resource limit.
    pub fn has_limits(&self) -> bool {
        !self.limits.is_empty()
    }

    /// The rule for the same resource, however low.
    pub fn find_resource(&self, asked: &Limit) -> Option<RuleId> {
        first(&self.limits, |limit| limit.resource == asked.resource)
    }

    /// The rules about what is `usable`, asked by the word of `allow` that stands for it; some more than once.
    pub fn rules(&self, usable: impl Fn(&str) -> bool) -> Vec<RuleId> {
        let mut rules = Vec::new();
        if usable("listen") {
            rules.extend(self.listens().map(|(_, id)| id));
        }
        if usable("address") {
            rules.extend(self.addresses.values().copied().chain(self.blocks.iter().map(|(_, id)| *id)));
        }
        if usable("link") {
            rules.extend(self.interfaces.values().copied());
        }
        if usable("limit") {
            rules.extend(self.limits.iter().map(|(_, id)| *id));
        }
        rules
    }

    /// Every endpoint and pattern.
    pub fn listens(&self) -> impl Iterator<Item = (Listens<'_>, RuleId)> {
        let patterns = self.patterns.iter().map(|(p, id)| (Listens::Pattern(p), *id));
        patterns.chain(self.endpoints.iter().map(|(e, id)| (Listens::Endpoint(e), *id)))
    }
}

/// An entry of a grant about listening.
#[derive(Clone, Copy, Debug)]
pub(super) enum Listens<'g> {
    Endpoint(&'g Endpoint),
    Pattern(&'g ListenPattern),
}

fn first<T>(rules: &[(T, RuleId)], permits: impl Fn(&T) -> bool) -> Option<RuleId> {
    rules.iter().find(|(what, _)| permits(what)).map(|(_, id)| *id)
}

/// The endpoints of a pattern, where it has as few as can be hashed; none otherwise.
fn singles(pattern: &ListenPattern) -> Vec<Endpoint> {
    match pattern {
        ListenPattern::Path(path) => match Text::new(path) {
            Ok(path) => vec![Endpoint::UnixStream(path.clone()), Endpoint::UnixSeqpacket(path)],
            Err(_) => Vec::new(),
        },
        ListenPattern::Inet { udp, hosts, ports } if ports.start() == ports.end() => {
            let (address, scope) = match hosts {
                Hosts::Block(block) if block.is_single() && !block.address().is_unspecified() => {
                    (block.address(), "")
                }
                Hosts::Scoped(address, scope) => (*address, scope.as_str()),
                _ => return Vec::new(),
            };
            let Ok(scope) = Text::new(scope) else {
                return Vec::new();
            };
            let inet = InetEndpoint { address, port: *ports.start(), scope };
            vec![if *udp { Endpoint::Udp(inet) } else { Endpoint::Tcp(inet) }]
        }
        _ => Vec::new(),
    }
}
