//! Decisions about listening: on which endpoint, by which rule, and with which socket options.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::net::Ipv4Addr;
use std::rc::Rc;

use portreeve_protocol::message::Listen;
use portreeve_protocol::{Endpoint, InetEndpoint, Text};

use super::denied::permit_of;
use super::grant::{Entry, Grant};
use super::permit::ListenPermit;
use super::resource::{Kind, Pattern, Resource};
use super::rule::{Rule, RuleId};
use super::{Denied, Policy, Requester};
use crate::config::{Hosts, ListenPattern, well_formed};

/// The largest number of rules that a denial compares, so that it stays cheap with very many rules.
const MAX_COMPARED: usize = 1024;

impl Policy {
    /// Whether a peer is allowed the listener that it requests. A dual-stack socket serves IPv4 too, so its endpoint and
    /// the IPv4 endpoint of the same port must both be allowed.
    pub fn listen_request(&self, requester: &Requester, request: &Listen) -> Result<ListenPermit, Denied> {
        let permit = self.listen(requester, &request.endpoint)?;
        let ipv4 = request.options.dual_stack.then(|| ipv4_endpoint(&request.endpoint)).flatten();
        let ipv4_permit = ipv4.as_ref().map(|ipv4| self.listen(requester, ipv4)).transpose()?;
        let unkept_rules = match request.mode().kept {
            true => Vec::new(),
            false => {
                let endpoints = std::iter::once(&request.endpoint).chain(&ipv4);
                endpoints.map(|endpoint| self.unkept(requester, endpoint)).collect::<Result<_, _>>()?
            }
        };
        Ok(ListenPermit { ipv4_rule: ipv4_permit.map(|permit| permit.rule), unkept_rules, ..permit })
    }

    /// Whether a peer is allowed the only copy of a socket that listens on an endpoint.
    pub fn unkept(&self, requester: &Requester, endpoint: &Endpoint) -> Result<Rc<Rule>, Denied> {
        let rule = self.find(requester, &Resource::UnkeptEndpoint(Cow::Borrowed(endpoint)));
        rule.cloned().ok_or_else(|| Denied {
            message: format!(
                "{requester} is not allowed to listen on {endpoint} without a copy of the socket in the broker"
            ),
            nearest: None,
            remedy: "add unkept = true to a permit of that endpoint, or request it with kept = true".to_owned(),
        })
    }

    /// Whether a peer is allowed to listen on one endpoint.
    pub fn listen(&self, requester: &Requester, endpoint: &Endpoint) -> Result<ListenPermit, Denied> {
        if let Err(error) = well_formed(endpoint) {
            return Err(Denied {
                message: format!("{requester} is not allowed to listen on {endpoint}"),
                nearest: None,
                remedy: error.to_string(),
            });
        }
        let Some(rule) = self.find(requester, &Resource::Endpoint(Cow::Borrowed(endpoint))) else {
            return Err(self.listen_denied(requester, endpoint));
        };
        let floating = self.starts_with_its_address(endpoint);
        Ok(ListenPermit { rule: rule.clone(), ipv4_rule: None, unkept_rules: Vec::new(), floating })
    }

    fn listen_denied(&self, requester: &Requester, endpoint: &Endpoint) -> Denied {
        let nearest = self.search(requester, Kind::Endpoint, |grant| nearest(grant, endpoint));
        let nearest = nearest.map(|rule| rule.to_string());
        let permit = permit_of(requester);
        let add = match requester {
            Requester::Worker => {
                format!("add a listen scope for it, or add {endpoint} to the listen list of {permit}")
            }
            Requester::Local { .. } => format!("add {endpoint} to the listen list of {permit}"),
        };
        let remedy = match &nearest {
            Some(rule) => format!("{add}; the nearest rule is {rule}"),
            None => add,
        };
        Denied { message: format!("{requester} is not allowed to listen on {endpoint}"), nearest, remedy }
    }
}

/// The IPv4 endpoint that a dual-stack socket serves beside its own.
pub fn ipv4_endpoint(endpoint: &Endpoint) -> Option<Endpoint> {
    let any = |inet: &InetEndpoint| InetEndpoint {
        address: Ipv4Addr::UNSPECIFIED.into(),
        port: inet.port,
        scope: Text::default(),
    };
    match endpoint {
        Endpoint::Tcp(inet) => Some(Endpoint::Tcp(any(inet))),
        Endpoint::Udp(inet) => Some(Endpoint::Udp(any(inet))),
        Endpoint::UnixStream(_) | Endpoint::UnixSeqpacket(_) => None,
    }
}

/// The rule that has most in common with an endpoint, if it has its port or its address.
fn nearest(grant: &Grant, requested: &Endpoint) -> Option<RuleId> {
    let scored = grant.entries(Kind::Endpoint).take(MAX_COMPARED).map(|(entry, id)| {
        let score = match entry {
            Entry::Single(Resource::Endpoint(endpoint)) => endpoint_score(endpoint, requested),
            Entry::Pattern(Pattern::Endpoints(pattern)) => pattern_score(pattern, requested),
            Entry::Single(_) | Entry::Pattern(_) => 0,
        };
        (score, id)
    });
    // Of equal scores the first one, so that the same request always names the same rule.
    let best = scored.filter(|(score, _)| *score > 0).min_by_key(|(score, id)| (Reverse(*score), *id));
    best.map(|(_, id)| id)
}

fn inet(endpoint: &Endpoint) -> Option<(bool, &InetEndpoint)> {
    match endpoint {
        Endpoint::Tcp(inet) => Some((false, inet)),
        Endpoint::Udp(inet) => Some((true, inet)),
        Endpoint::UnixStream(_) | Endpoint::UnixSeqpacket(_) => None,
    }
}

/// Two for the same address, three for the same port, one each for transport and family; zero if neither address nor
/// port is the same.
fn score(udp: bool, family: bool, host: bool, port: bool) -> u32 {
    match host || port {
        true => 2 * u32::from(host) + 3 * u32::from(port) + u32::from(udp) + u32::from(family),
        false => 0,
    }
}

fn endpoint_score(rule: &Endpoint, requested: &Endpoint) -> u32 {
    match (inet(rule), inet(requested)) {
        (Some((rule_udp, rule)), Some((udp, requested))) => score(
            rule_udp == udp,
            rule.address.is_ipv4() == requested.address.is_ipv4(),
            rule.address == requested.address,
            rule.port == requested.port,
        ),
        (None, None) => path_score(path(rule), path(requested)),
        _ => 0,
    }
}

fn pattern_score(rule: &ListenPattern, requested: &Endpoint) -> u32 {
    match (rule, inet(requested)) {
        (ListenPattern::Inet { udp: rule_udp, hosts, ports }, Some((udp, inet))) => {
            // The same pattern for every port, and for the requested transport.
            let host = ListenPattern::Inet { udp, hosts: hosts.clone(), ports: 1..=u16::MAX };
            score(
                *rule_udp == udp,
                is_ipv4(hosts) == inet.address.is_ipv4(),
                host.matches(requested),
                ports.contains(&inet.port),
            )
        }
        (ListenPattern::Path(rule) | ListenPattern::Children(rule), None) => {
            path_score(rule, path(requested))
        }
        _ => 0,
    }
}

fn is_ipv4(hosts: &Hosts) -> bool {
    match hosts {
        Hosts::Any4 => true,
        Hosts::Any6 | Hosts::Scoped(..) => false,
        Hosts::Block(block) => block.address().is_ipv4(),
    }
}

fn path(endpoint: &Endpoint) -> &str {
    match endpoint {
        Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path) => path.as_str(),
        Endpoint::Tcp(_) | Endpoint::Udp(_) => "",
    }
}

/// One if both are in the same directory.
fn path_score(rule: &str, requested: &str) -> u32 {
    let directory = |path: &str| path.rfind('/').map(|at| at + 1);
    u32::from(directory(rule).is_some_and(|end| rule.get(..end) == requested.get(..end)))
}
