//! The rules of the policy that concern TCP and UDP listeners, as the broker shows them to a peer.
//!
//! They only select the calls about which the broker is asked. The broker decides, so a rule that is read wrongly permits
//! nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use portreeve_protocol::Endpoint;

/// The rules that may permit a TCP or UDP listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    listen: Vec<Rule>,
    /// Whether there is a rule that could not be read, so that every listener may be permitted.
    unreadable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    udp: bool,
    hosts: Hosts,
    ports: RangeInclusive<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    /// The wildcard address and every address of the family.
    Any { ipv4: bool },
    /// The addresses of a block, never the wildcard address.
    Block { address: IpAddr, prefix: u8 },
}

/// What one line of the policy says.
enum Line {
    Listen(Rule),
    /// Nothing about TCP and UDP listeners.
    Other,
    Unreadable,
}

/// The maximum length of a rule's text in a page of the policy; a longer one is cut off.
const MAX_TEXT: usize = 160;

impl Rules {
    /// Adds a rule by its text in a page of the policy, such as `permit "mail": listen *:25`. Returns whether it may permit a TCP
    /// or UDP listener.
    pub fn add(&mut self, text: &str) -> bool {
        match line(text) {
            Line::Listen(rule) => self.listen.push(rule),
            Line::Other => return false,
            Line::Unreadable => self.unreadable = true,
        }
        true
    }

    /// Whether no rule permits a listener.
    pub fn is_empty(&self) -> bool {
        self.listen.is_empty() && !self.unreadable
    }

    /// Whether a rule may permit a listener on this address and port, by TCP or UDP.
    pub fn may_permit_either(&self, address: IpAddr, port: u16) -> bool {
        self.unreadable || self.listen.iter().any(|rule| rule.matches(address, port))
    }

    /// Whether a rule may permit this endpoint. A dual-stack socket needs the IPv4 endpoint as well.
    pub fn may_permit(&self, endpoint: &Endpoint, dual_stack: bool) -> bool {
        let (udp, inet) = match endpoint {
            Endpoint::Tcp(inet) => (false, inet),
            Endpoint::Udp(inet) => (true, inet),
            Endpoint::UnixStream(_) | Endpoint::UnixSeqpacket(_) => return false,
        };
        let permits =
            |address| self.listen.iter().any(|rule| rule.udp == udp && rule.matches(address, inet.port));
        self.unreadable
            || (permits(inet.address) && (!dual_stack || permits(IpAddr::V4(Ipv4Addr::UNSPECIFIED))))
    }
}

impl Rule {
    fn matches(&self, address: IpAddr, port: u16) -> bool {
        self.ports.contains(&port)
            && match self.hosts {
                Hosts::Any { ipv4 } => address.is_ipv4() == ipv4,
                Hosts::Block { address: block, prefix } => {
                    !address.is_unspecified() && contains(block, prefix, address)
                }
            }
    }
}

fn contains(block: IpAddr, prefix: u8, address: IpAddr) -> bool {
    match (block, address) {
        (IpAddr::V4(block), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            (block.to_bits() ^ address.to_bits()) & mask == 0
        }
        (IpAddr::V6(block), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
            (block.to_bits() ^ address.to_bits()) & mask == 0
        }
        _ => false,
    }
}

/// Reads one line: that of a permit ends with `: listen PATTERN`, that of a listen scope with `: Listen "ENDPOINT"`.
fn line(text: &str) -> Line {
    let pattern = match (text.rsplit_once(": listen "), text.rsplit_once(": Listen \"")) {
        (Some((_, pattern)), _) => Some(pattern),
        (None, Some((_, endpoint))) => endpoint.strip_suffix('"'),
        (None, None) if text.len() < MAX_TEXT => return Line::Other,
        (None, None) => None,
    };
    match pattern {
        Some(pattern) if pattern.starts_with('/') || pattern.starts_with("seqpacket:") => Line::Other,
        Some(pattern) if text.len() < MAX_TEXT => rule(pattern).map_or(Line::Unreadable, Line::Listen),
        _ => Line::Unreadable,
    }
}

fn rule(pattern: &str) -> Option<Rule> {
    let (host, rest) = pattern.rsplit_once(':')?;
    let (ports, udp) = match rest.split_once('/') {
        None | Some((_, "tcp")) => (rest.trim_end_matches("/tcp"), false),
        Some((ports, "udp")) => (ports, true),
        Some(_) => return None,
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let hosts = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        None if host == "*" => Hosts::Any { ipv4: true },
        Some("::") => Hosts::Any { ipv4: false },
        inner => block(inner.unwrap_or(host))?,
    };
    Some(Rule { udp, hosts, ports: first.parse().ok()?..=last.parse().ok()? })
}

/// `ADDRESS`, `ADDRESS/PREFIX` or `ADDRESS%INTERFACE`. The broker compares the interface.
fn block(text: &str) -> Option<Hosts> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse().ok()?)),
        None => (text.split_once('%').map_or(text, |(address, _)| address), None),
    };
    let address: IpAddr = address.parse().ok()?;
    let all = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(all);
    (prefix <= all).then_some(Hosts::Block { address, prefix })
}

/// Whether a port needs a privilege by the kernel's default. See net.ipv4.ip_unprivileged_port_start in ip(7).
pub(crate) fn is_privileged(port: u16) -> bool {
    port < 1024
}

#[cfg(test)]
mod tests {
    use portreeve_broker::config::ListenPattern;
    use portreeve_protocol::InetEndpoint;

    use super::*;

    fn rules(texts: &[&str]) -> Rules {
        let mut rules = Rules::default();
        texts.iter().for_each(|text| _ = rules.add(text));
        rules
    }

    /// Whatever a pattern of the configuration permits, the rule that is read from its text permits.
    #[test]
    fn every_pattern_of_the_policy_is_read_as_the_broker_means_it() {
        let patterns = [
            "*:25",
            "*:1-1023",
            "[::]:25",
            "[*]:80-90/udp",
            "127.0.0.1:25",
            "192.0.2.0/24:25",
            "10.0.0.0/8:1-65535/udp",
            "[2001:db8::1]:25",
            "[2001:db8::/32]:25-26",
            "[fe80::1%eth0]:25",
            "0.0.0.0:53/udp",
            ":53",
        ];
        let endpoints = [
            "*:25",
            "*:53",
            "*:53/udp",
            "[::]:25",
            "[::]:80/udp",
            "127.0.0.1:25",
            "127.0.0.2:25",
            "192.0.2.7:25",
            "192.0.3.7:25",
            "10.1.2.3:9/udp",
            "10.1.2.3:9",
            "[2001:db8::1]:25",
            "[2001:db8:1::]:26",
            "[2001:db9::]:26",
            "[fe80::1%eth0]:25",
            "*:1023",
            "*:1024",
        ];
        let mut permitted = 0;
        for text in patterns {
            let pattern: ListenPattern = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            let rules = rules(&[&format!("permit \"a: listen b\": listen {pattern}")]);
            assert!(!rules.unreadable && rules.listen.len() == 1, "{text}: {rules:?}");
            for endpoint in endpoints {
                let endpoint: Endpoint =
                    endpoint.parse().unwrap_or_else(|error| panic!("{endpoint}: {error}"));
                assert_eq!(
                    rules.may_permit(&endpoint, false),
                    pattern.matches(&endpoint),
                    "{text} {endpoint}"
                );
                permitted += usize::from(pattern.matches(&endpoint));
            }
        }
        assert!(permitted > 20, "{permitted}");
    }

    #[test]
    fn listen_scopes_are_read_and_other_rules_ignored() {
        let all = rules(&[
            "SMTP: Listen \"192.0.2.1:25\"",
            "SMTP: Listen \"/run/mail.sock\"",
            "permit \"a\": listen /run/x/*",
            "permit \"a\": address 10.0.0.0/8",
            "permit \"a\": limit nofile=4096",
        ]);
        assert_eq!(all, rules(&["SMTP: Listen \"192.0.2.1:25\""]));
        assert!(!all.is_empty() && rules(&["permit \"a\": interface eth0"]).is_empty());
    }

    #[test]
    fn a_rule_that_cannot_be_read_permits_everything_to_be_asked() {
        let long = format!("permit \"{}\": listen *:2", "x".repeat(160));
        for text in [
            long.get(..160).unwrap_or_default(),
            "permit \"a\": listen what",
            "permit \"a\": listen *:25/sctp",
        ] {
            let rules = rules(&[text]);
            assert!(rules.may_permit(&Endpoint::Udp(inet("[::]:9")), true), "{text}");
        }
    }

    fn inet(text: &str) -> InetEndpoint {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_dual_stack_socket_needs_both_families() {
        let both = Endpoint::Tcp(inet("[::]:25"));
        assert!(!rules(&["permit \"a\": listen [::]:25"]).may_permit(&both, true));
        assert!(rules(&["permit \"a\": listen [::]:25"]).may_permit(&both, false));
        assert!(
            rules(&["permit \"a\": listen [::]:25", "permit \"a\": listen *:25"]).may_permit(&both, true)
        );
    }
}
