//! The resources that a rule can allow, as one type, so that one lookup serves all of them.

use std::borrow::Cow;
use std::net::IpAddr;

use portreeve_protocol::{Endpoint, InetEndpoint, Text};

use crate::config::{Cidr, Hosts, Limit, ListenPattern};

/// One resource that a peer can be allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Resource<'a> {
    /// Listen on a well-formed endpoint.
    Endpoint(Cow<'a, Endpoint>),
    /// Listen there with the only copy of the socket.
    UnkeptEndpoint(Cow<'a, Endpoint>),
    /// Have an address on an interface.
    Address(IpAddr),
    /// Have it without a time limit.
    PermanentAddress(IpAddr),
    /// Set an interface up, down or to another MTU.
    Interface(Cow<'a, str>),
    /// Raise a resource limit of the peer's own process to this value.
    Limit(Limit),
}

/// The kinds of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Endpoint,
    UnkeptEndpoint,
    Address,
    PermanentAddress,
    Interface,
    Limit,
}

impl Kind {
    /// The word of `allow` in a `peer` scope: without one of its operations, the scope's permits have no effect.
    pub fn allow_word(self) -> &'static str {
        match self {
            Kind::Endpoint | Kind::UnkeptEndpoint => "listen",
            Kind::Address | Kind::PermanentAddress => "address",
            Kind::Interface => "link",
            Kind::Limit => "limit",
        }
    }
}

impl Resource<'_> {
    /// The kind of the resource.
    pub fn kind(&self) -> Kind {
        match self {
            Resource::Endpoint(_) => Kind::Endpoint,
            Resource::UnkeptEndpoint(_) => Kind::UnkeptEndpoint,
            Resource::Address(_) => Kind::Address,
            Resource::PermanentAddress(_) => Kind::PermanentAddress,
            Resource::Interface(_) => Kind::Interface,
            Resource::Limit(_) => Kind::Limit,
        }
    }
}

/// Many resources of one kind, as the configuration writes them.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// The endpoints of a `listen` entry.
    Endpoints(ListenPattern),
    /// The same endpoints with the only copy of the socket.
    UnkeptEndpoints(ListenPattern),
    /// The addresses of a block.
    Addresses(Cidr),
    /// The same addresses without a time limit.
    PermanentAddresses(Cidr),
    /// A resource limit and every lower one.
    Limits(Limit),
}

impl Pattern {
    /// The kind of its resources.
    pub fn kind(&self) -> Kind {
        match self {
            Pattern::Endpoints(_) => Kind::Endpoint,
            Pattern::UnkeptEndpoints(_) => Kind::UnkeptEndpoint,
            Pattern::Addresses(_) => Kind::Address,
            Pattern::PermanentAddresses(_) => Kind::PermanentAddress,
            Pattern::Limits(_) => Kind::Limit,
        }
    }

    /// Whether a resource is one of them.
    pub fn covers(&self, resource: &Resource<'_>) -> bool {
        match (self, resource) {
            (Pattern::Endpoints(pattern), Resource::Endpoint(endpoint))
            | (Pattern::UnkeptEndpoints(pattern), Resource::UnkeptEndpoint(endpoint)) => {
                pattern.matches(endpoint)
            }
            (Pattern::Addresses(block), Resource::Address(address))
            | (Pattern::PermanentAddresses(block), Resource::PermanentAddress(address)) => {
                block.contains(*address)
            }
            (Pattern::Limits(limit), Resource::Limit(wanted)) => limit.covers(wanted),
            _ => false,
        }
    }

    /// All of its resources, if there are so few that each can be hashed; otherwise none.
    pub fn single_resources(&self) -> Vec<Resource<'static>> {
        match self {
            Pattern::Endpoints(pattern) => {
                single_endpoints(pattern).into_iter().map(|it| Resource::Endpoint(Cow::Owned(it))).collect()
            }
            Pattern::UnkeptEndpoints(pattern) => {
                let single = single_endpoints(pattern).into_iter();
                single.map(|it| Resource::UnkeptEndpoint(Cow::Owned(it))).collect()
            }
            Pattern::Addresses(block) if block.is_single() => vec![Resource::Address(block.address())],
            Pattern::PermanentAddresses(block) if block.is_single() => {
                vec![Resource::PermanentAddress(block.address())]
            }
            Pattern::Addresses(_) | Pattern::PermanentAddresses(_) | Pattern::Limits(_) => Vec::new(),
        }
    }
}

fn single_endpoints(pattern: &ListenPattern) -> Vec<Endpoint> {
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
