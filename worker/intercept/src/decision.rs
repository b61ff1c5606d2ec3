//! Which bind(2) the broker is asked about. Pure: it decides on what others have read.

use std::net::IpAddr;

use portreeve_protocol::{Endpoint, InetEndpoint, Text};

use crate::rules::{Rules, is_privileged};
use crate::socket_address::SocketAddress;

/// The program's socket, as far as the broker has to make one that is like it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// SO_DOMAIN.
    pub domain: i32,
    /// SO_TYPE.
    pub kind: i32,
    /// SO_PROTOCOL.
    pub protocol: i32,
    /// It is bound already.
    pub is_bound: bool,
    /// It belongs to the network namespace of this process, in which the broker's sockets are too.
    pub is_own_network: bool,
    /// SO_REUSEPORT.
    pub reuse_port: bool,
    /// IPV6_V6ONLY.
    pub ipv6_only: bool,
    /// IP_FREEBIND.
    pub free_bind: bool,
    /// SO_BINDTODEVICE; empty for none.
    pub device: String,
    /// The name of the interface that the address names.
    pub scope: String,
}

/// A listener to request from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// SO_REUSEPORT.
    pub reuse_port: bool,
    /// Accept IPv4 as well: IPV6_V6ONLY is off.
    pub dual_stack: bool,
    /// IP_FREEBIND.
    pub free_bind: bool,
    /// SO_BINDTODEVICE.
    pub device: Option<String>,
}

/// Whether the program's socket has to be looked at: a rule may permit this address, or its port needs a privilege, so that the
/// rules may have changed.
pub fn concerns(address: &SocketAddress, rules: &Rules) -> bool {
    address.port != 0
        && !is_mapped(address.address)
        && (is_privileged(address.port) || rules.may_permit_either(address.address, address.port))
}

/// An IPv4-mapped IPv6 address: the broker would make an IPv4 socket for it, whose addresses an IPv6 program does not expect.
fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// The request that stands for a bind of this socket to this address; `None` if the kernel has to judge it.
pub fn request(address: &SocketAddress, facts: &Facts) -> Option<Request> {
    let fits = match address.address {
        IpAddr::V4(_) => facts.domain == libc::AF_INET,
        IpAddr::V6(_) => facts.domain == libc::AF_INET6,
    };
    if !fits || facts.is_bound || !facts.is_own_network || address.port == 0 || is_mapped(address.address) {
        return None;
    }
    let scope = if needs_scope(address.address) { facts.scope.as_str() } else { "" };
    let inet = InetEndpoint { address: address.address, port: address.port, scope: Text::new(scope).ok()? };
    let endpoint = match (facts.kind, facts.protocol) {
        // The broker has no multipath TCP; a client that offers it falls back to TCP.
        (libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) => Endpoint::Tcp(inet),
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => Endpoint::Udp(inet),
        _ => return None,
    };
    let dual_stack = address.address.is_unspecified() && address.address.is_ipv6() && !facts.ipv6_only;
    Some(Request {
        endpoint,
        reuse_port: facts.reuse_port,
        dual_stack,
        free_bind: facts.free_bind,
        device: Some(facts.device.clone()).filter(|device| !device.is_empty()),
    })
}

/// Whether the address is only unique together with an interface. RFC 4007 section 11.
pub fn needs_scope(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => {
            let [first, second, ..] = address.octets();
            address.is_unicast_link_local() || (first == 0xff && matches!(second & 0x0f, 1 | 2))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str, port: u16) -> SocketAddress {
        let address = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        SocketAddress { address, port, scope: 0 }
    }

    fn tcp(domain: i32) -> Facts {
        let (kind, protocol) = (libc::SOCK_STREAM, libc::IPPROTO_TCP);
        Facts { domain, kind, protocol, is_own_network: true, ipv6_only: true, ..Facts::default() }
    }

    fn endpoint(address: &SocketAddress, facts: &Facts) -> Option<String> {
        request(address, facts).map(|request| request.endpoint.to_string())
    }

    #[test]
    fn tcp_multipath_tcp_and_udp_of_both_families_become_endpoints() {
        let ipv4 = address("192.0.2.1", 25);
        assert_eq!(endpoint(&ipv4, &tcp(libc::AF_INET)).as_deref(), Some("192.0.2.1:25"));
        let multipath = Facts { protocol: libc::IPPROTO_MPTCP, ..tcp(libc::AF_INET6) };
        assert_eq!(endpoint(&address("::", 443), &multipath).as_deref(), Some("[::]:443"));
        let udp = Facts { kind: libc::SOCK_DGRAM, protocol: libc::IPPROTO_UDP, ..tcp(libc::AF_INET) };
        assert_eq!(endpoint(&address("0.0.0.0", 53), &udp).as_deref(), Some("*:53/udp"));
        let scoped = Facts { scope: "eth0".to_owned(), ..tcp(libc::AF_INET6) };
        assert_eq!(endpoint(&address("fe80::1", 25), &scoped).as_deref(), Some("[fe80::1%eth0]:25"));
        assert_eq!(endpoint(&address("2001:db8::1", 25), &scoped).as_deref(), Some("[2001:db8::1]:25"));
    }

    #[test]
    fn everything_else_is_left_to_the_kernel() {
        let (ipv4, ipv6) = (address("0.0.0.0", 25), address("::", 25));
        let inet = tcp(libc::AF_INET);
        for (what, target, facts) in [
            ("an IPv4 address on an IPv6 socket", &ipv4, tcp(libc::AF_INET6)),
            ("an IPv6 address on an IPv4 socket", &ipv6, inet.clone()),
            ("a bound socket", &ipv4, Facts { is_bound: true, ..inet.clone() }),
            ("another network namespace", &ipv4, Facts { is_own_network: false, ..inet.clone() }),
            ("port 0", &SocketAddress { port: 0, ..ipv4 }, inet.clone()),
            ("SCTP", &ipv4, Facts { protocol: libc::IPPROTO_SCTP, ..inet.clone() }),
            (
                "UDP-Lite",
                &ipv4,
                Facts { kind: libc::SOCK_DGRAM, protocol: libc::IPPROTO_UDPLITE, ..inet.clone() },
            ),
            ("ping", &ipv4, Facts { kind: libc::SOCK_DGRAM, protocol: libc::IPPROTO_ICMP, ..inet.clone() }),
            ("a raw socket", &ipv4, Facts { kind: libc::SOCK_RAW, ..inet }),
            ("a mapped address", &address("::ffff:192.0.2.1", 25), tcp(libc::AF_INET6)),
        ] {
            assert_eq!(request(target, &facts), None, "{what}");
        }
    }

    #[test]
    fn the_options_that_decide_about_a_bind_reach_the_request() {
        let facts = Facts {
            reuse_port: true,
            free_bind: true,
            ipv6_only: false,
            device: "eth0".to_owned(),
            ..tcp(libc::AF_INET6)
        };
        let wildcard = request(&address("::", 25), &facts);
        let expected = Request {
            endpoint: Endpoint::Tcp(InetEndpoint {
                address: std::net::Ipv6Addr::UNSPECIFIED.into(),
                port: 25,
                scope: Text::default(),
            }),
            reuse_port: true,
            dual_stack: true,
            free_bind: true,
            device: Some("eth0".to_owned()),
        };
        assert_eq!(wildcard, Some(expected));
        let one = request(&address("2001:db8::1", 25), &facts);
        assert!(one.is_some_and(|request| !request.dual_stack), "one address is never dual-stack");
    }

    #[test]
    fn only_what_a_rule_may_permit_and_privileged_ports_concern_the_supervisor() {
        let mut rules = Rules::default();
        assert!(rules.add("permit \"a\": listen *:2525"));
        assert!(concerns(&address("127.0.0.1", 2525), &rules));
        assert!(!concerns(&address("127.0.0.1", 0), &rules));
        assert!(!concerns(&address("127.0.0.1", 2526), &rules));
        assert!(!concerns(&address("::1", 2525), &rules));
        assert!(!concerns(&address("::ffff:127.0.0.1", 2525), &rules));
        assert!(concerns(&address("::1", 1023), &rules));
    }
}
