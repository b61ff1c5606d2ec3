//! Whether somebody may listen on an endpoint, by which rule, and how its socket is made.

use std::cmp::Reverse;

use portreeve_protocol::{Endpoint, InetEndpoint};

use super::grant::{Grant, Listens};
use super::rule::RuleId;
use super::{Denied, Policy, Requester, Rule};
use crate::config::{Hosts, ListenPattern, SocketOptions, well_formed};

/// The rules that a refusal compares, so that it costs little however many there are.
const COMPARED: usize = 1024;

/// Leave to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenPermit<'p> {
    /// The rule that gives it.
    pub rule: &'p Rule,
}

impl ListenPermit<'_> {
    /// How the socket is made, where a `listen` scope says so.
    pub fn socket(&self) -> Option<&SocketOptions> {
        self.rule.socket.as_ref()
    }
}

impl Policy {
    /// Whether an endpoint may be listened on. What serves both families at once (an IPv6 wildcard that
    /// is dual-stack) needs leave for each: ask for the IPv4 wildcard of the same port too.
    pub fn listen(&self, who: &Requester, endpoint: &Endpoint) -> Result<ListenPermit<'_>, Denied> {
        if let Err(error) = well_formed(endpoint) {
            return Err(Denied {
                message: format!("{who} may not listen on {endpoint}"),
                nearest: None,
                remedy: error.to_string(),
            });
        }
        self.granted(who, |grant| grant.find_endpoint(endpoint))
            .and_then(|id| self.rule(id))
            .map(|rule| ListenPermit { rule })
            .ok_or_else(|| self.not_listen(who, endpoint))
    }

    /// The first rule that `find` finds in what the requester may listen on.
    fn granted(&self, who: &Requester, find: impl Fn(&Grant) -> Option<RuleId>) -> Option<RuleId> {
        let peer = |peer: &super::peers::PeerGrant| match peer.allows_any("listen") {
            true => find(&peer.grant),
            false => None,
        };
        self.find(who, peer, &find)
    }

    fn not_listen(&self, who: &Requester, endpoint: &Endpoint) -> Denied {
        let nearest = self.granted(who, |grant| nearest(grant, endpoint));
        let nearest = nearest.and_then(|id| self.rule(id)).map(Rule::to_string);
        let add = match who {
            Requester::Worker => format!("add a listen scope for it, or {endpoint} to a permit's listen"),
            Requester::Local { .. } => {
                format!("add {endpoint} to the listen of a permit that a peer scope of that user names")
            }
        };
        let remedy = match &nearest {
            Some(rule) => format!("{add}; the nearest rule is {rule}"),
            None => add,
        };
        Denied { message: format!("nothing permits {who} to listen on {endpoint}"), nearest, remedy }
    }
}

/// The rule that has most in common with an endpoint, if it has its port or its address.
fn nearest(grant: &Grant, asked: &Endpoint) -> Option<RuleId> {
    let scored = grant.listens().take(COMPARED).map(|(listens, id)| {
        let score = match listens {
            Listens::Endpoint(endpoint) => endpoint_score(endpoint, asked),
            Listens::Pattern(pattern) => pattern_score(pattern, asked),
        };
        (score, id)
    });
    // The first of equals, so that the answer does not change from one time to the next.
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

/// Two for the address, three for the port, one each for transport and family; none without the first two.
fn score(udp: bool, family: bool, host: bool, port: bool) -> u32 {
    match host || port {
        true => 2 * u32::from(host) + 3 * u32::from(port) + u32::from(udp) + u32::from(family),
        false => 0,
    }
}

fn endpoint_score(rule: &Endpoint, asked: &Endpoint) -> u32 {
    match (inet(rule), inet(asked)) {
        (Some((rule_udp, rule)), Some((udp, asked))) => score(
            rule_udp == udp,
            rule.address.is_ipv4() == asked.address.is_ipv4(),
            rule.address == asked.address,
            rule.port == asked.port,
        ),
        (None, None) => path_score(path(rule), path(asked)),
        _ => 0,
    }
}

fn pattern_score(rule: &ListenPattern, asked: &Endpoint) -> u32 {
    match (rule, inet(asked)) {
        (ListenPattern::Inet { udp: rule_udp, hosts, ports }, Some((udp, inet))) => {
            // The same pattern for every port, and for the asked port and transport.
            let host = ListenPattern::Inet { udp, hosts: hosts.clone(), ports: 1..=u16::MAX };
            score(
                *rule_udp == udp,
                is_ipv4(hosts) == inet.address.is_ipv4(),
                host.matches(asked),
                ports.contains(&inet.port),
            )
        }
        (ListenPattern::Path(rule) | ListenPattern::Children(rule), None) => path_score(rule, path(asked)),
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

/// One for the same directory.
fn path_score(rule: &str, asked: &str) -> u32 {
    let directory = |path: &str| path.rfind('/').map(|at| at + 1);
    u32::from(directory(rule).is_some_and(|end| rule.get(..end) == asked.get(..end)))
}
