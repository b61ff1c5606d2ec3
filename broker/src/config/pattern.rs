//! Listen patterns of a permit: endpoints, address blocks and port ranges.
//!
//! Written `HOST:PORT`, with a range `PORT-PORT`, a block `ADDRESS/PREFIX`, `*` for every IPv4 and `[*]` or
//! `[::]` for every IPv6 address, and `/udp` for UDP. A path matches itself, `/dir/*` every name in
//! that directory. A pattern matches nothing else: not the other address family, not the other transport, and not the
//! wildcard address if the pattern names only addresses.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use portreeve_protocol::{Endpoint, InetEndpoint};

use super::cidr::{Cidr, is_mapped};

/// A set of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenPattern {
    /// TCP or UDP sockets.
    Inet {
        /// UDP; otherwise TCP.
        udp: bool,
        /// The addresses.
        hosts: Hosts,
        /// The ports.
        ports: RangeInclusive<u16>,
    },
    /// The Unix socket with this path, stream or sequenced-packet.
    Path(String),
    /// Every Unix socket whose path is this directory, which ends with `/`, and one name.
    Children(String),
}

/// A set of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// The IPv4 wildcard and every IPv4 address.
    Any4,
    /// The IPv6 wildcard and every IPv6 address.
    Any6,
    /// The addresses of a block, never the wildcard.
    Block(Cidr),
    /// One IPv6 address on one interface. RFC 4007 section 11.
    Scoped(IpAddr, String),
}

impl ListenPattern {
    /// Whether an endpoint matches. Only a [`well_formed`] endpoint ever matches.
    pub fn matches(&self, endpoint: &Endpoint) -> bool {
        match (self, endpoint) {
            (ListenPattern::Inet { udp: false, hosts, ports }, Endpoint::Tcp(inet))
            | (ListenPattern::Inet { udp: true, hosts, ports }, Endpoint::Udp(inet)) => {
                ports.contains(&inet.port) && hosts.contain(inet)
            }
            (
                ListenPattern::Path(path),
                Endpoint::UnixStream(requested) | Endpoint::UnixSeqpacket(requested),
            ) => path == requested.as_str(),
            (
                ListenPattern::Children(directory),
                Endpoint::UnixStream(requested) | Endpoint::UnixSeqpacket(requested),
            ) => requested
                .as_str()
                .strip_prefix(directory.as_str())
                .is_some_and(|name| !name.is_empty() && !name.contains('/')),
            _ => false,
        }
    }
}

impl Hosts {
    fn contain(&self, endpoint: &InetEndpoint) -> bool {
        match self {
            Hosts::Any4 => endpoint.address.is_ipv4(),
            Hosts::Any6 => endpoint.address.is_ipv6() && !is_mapped(endpoint.address),
            Hosts::Block(block) => {
                !endpoint.address.is_unspecified()
                    && !is_mapped(endpoint.address)
                    && block.contains(endpoint.address)
                    // An address without a scope does not match the same address with one.
                    && (endpoint.scope.is_empty() || !block.is_single())
            }
            Hosts::Scoped(address, scope) => *address == endpoint.address && scope == endpoint.scope.as_str(),
        }
    }
}

/// Why an endpoint is refused whatever the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Port 0 would let the kernel choose a port.
    #[error("port 0 would let the kernel choose: name a port from 1 to 65535")]
    PortZero,
    /// An IPv4-mapped IPv6 address.
    #[error("write the IPv4 address instead of an IPv4-mapped IPv6 address")]
    Mapped,
    /// A link-local IPv6 address without an interface.
    #[error("a link-local IPv6 address needs its interface: write [fe80::1%eth0]:25")]
    NoScope,
    /// An interface on an address that is not link-local.
    #[error("only a link-local IPv6 address takes an interface: remove % and the name after it")]
    Scope,
    /// A path that does not begin with `/`.
    #[error("the path of a Unix socket must be absolute: begin it with /")]
    Relative,
    /// A path with `.`, `..` or an empty component.
    #[error("the path of a Unix socket must not contain ., .. or //: write it out")]
    Dots,
    /// A path with a NUL.
    #[error("the path of a Unix socket must not contain NUL")]
    Nul,
}

/// Checks that an endpoint is unambiguous.
pub fn well_formed(endpoint: &Endpoint) -> Result<(), Malformed> {
    match endpoint {
        Endpoint::Tcp(inet) | Endpoint::Udp(inet) => inet_well_formed(inet),
        Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path) => path_well_formed(path.as_str()),
    }
}

fn inet_well_formed(inet: &InetEndpoint) -> Result<(), Malformed> {
    if inet.port == 0 {
        return Err(Malformed::PortZero);
    }
    if is_mapped(inet.address) {
        return Err(Malformed::Mapped);
    }
    let link_local = match inet.address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local() || is_link_local_multicast(address.octets()),
    };
    match (link_local, inet.scope.is_empty()) {
        (true, true) => Err(Malformed::NoScope),
        (false, false) => Err(Malformed::Scope),
        _ => Ok(()),
    }
}

/// Interface-local or link-local multicast, RFC 4291 section 2.7.
fn is_link_local_multicast(octets: [u8; 16]) -> bool {
    let [first, second, ..] = octets;
    first == 0xff && matches!(second & 0x0f, 1 | 2)
}

fn path_well_formed(path: &str) -> Result<(), Malformed> {
    let Some(parts) = path.strip_prefix('/') else {
        return Err(Malformed::Relative);
    };
    if path.contains('\0') {
        return Err(Malformed::Nul);
    }
    match parts.split('/').any(|part| matches!(part, "" | "." | "..")) {
        true => Err(Malformed::Dots),
        false => Ok(()),
    }
}

impl FromStr for ListenPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return path_pattern(text);
        }
        let no_port = || {
            "write HOST:PORT, with * or [::] for every address, ADDRESS/PREFIX for a block and PORT-PORT for a \
             range; or the path of a Unix socket"
                .to_owned()
        };
        let (host, rest) = text.rsplit_once(':').ok_or_else(no_port)?;
        let (ports, udp) = match rest.split_once('/') {
            None => (rest, false),
            Some((ports, "tcp")) => (ports, false),
            Some((ports, "udp")) => (ports, true),
            Some((_, other)) => return Err(format!("{other:?} is not a transport: write tcp or udp")),
        };
        Ok(ListenPattern::Inet { udp, hosts: hosts(host)?, ports: port_range(ports)? })
    }
}

fn path_pattern(text: &str) -> Result<ListenPattern, String> {
    let (path, children) = text.strip_suffix("/*").map_or((text, false), |path| (path, true));
    if path.is_empty() && children {
        return Ok(ListenPattern::Children("/".to_owned()));
    }
    path_well_formed(path).map_err(|error| error.to_string())?;
    if path.contains('*') {
        return Err("write * only at the end, as in /directory/*".to_owned());
    }
    if path.len() > portreeve_protocol::endpoint::MAX_PATH {
        let max = portreeve_protocol::endpoint::MAX_PATH;
        return Err(format!("the path of a Unix socket has at most {max} bytes"));
    }
    Ok(match children {
        true => ListenPattern::Children(format!("{path}/")),
        false => ListenPattern::Path(path.to_owned()),
    })
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| {
        Some(text)
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse::<u16>().ok())
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("the range {first}-{last} is reversed: write {last}-{first}"));
    }
    Ok(first..=last)
}

fn hosts(text: &str) -> Result<Hosts, String> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let Some(inner) = bracketed else {
        return match text {
            "" | "*" | "0.0.0.0" => Ok(Hosts::Any4),
            _ if text.contains(':') => Err(format!("write an IPv6 address in brackets: [{text}]")),
            _ => block(text),
        };
    };
    match inner {
        "*" | "::" => return Ok(Hosts::Any6),
        _ if !inner.contains(':') => return Err(format!("{inner:?} in brackets is not an IPv6 address")),
        _ => {}
    }
    let Some((address, scope)) = inner.split_once('%') else {
        return match block(inner)? {
            Hosts::Block(one) if one.is_single() && needs_scope(one.address()) => {
                Err(Malformed::NoScope.to_string())
            }
            hosts => Ok(hosts),
        };
    };
    // The endpoint's own parser checks the interface's name.
    let probe: InetEndpoint = format!("[{address}%{scope}]:1")
        .parse()
        .map_err(|error: portreeve_protocol::endpoint::EndpointError| error.to_string())?;
    inet_well_formed(&probe).map_err(|error| error.to_string())?;
    Ok(Hosts::Scoped(probe.address, scope.to_owned()))
}

fn needs_scope(address: IpAddr) -> bool {
    let probe = InetEndpoint { address, port: 1, scope: Default::default() };
    inet_well_formed(&probe) == Err(Malformed::NoScope)
}

fn block(text: &str) -> Result<Hosts, String> {
    text.parse().map(Hosts::Block).map_err(|error: super::cidr::CidrError| error.to_string())
}

impl fmt::Display for ListenPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (udp, hosts, ports) = match self {
            ListenPattern::Path(path) => return out.write_str(path),
            ListenPattern::Children(directory) => return write!(out, "{directory}*"),
            ListenPattern::Inet { udp, hosts, ports } => (udp, hosts, ports),
        };
        match hosts {
            Hosts::Any4 => write!(out, "*:")?,
            Hosts::Any6 => write!(out, "[::]:")?,
            Hosts::Block(block) if block.address().is_ipv4() => write!(out, "{block}:")?,
            Hosts::Block(block) => write!(out, "[{block}]:")?,
            Hosts::Scoped(address, scope) => write!(out, "[{address}%{scope}]:")?,
        }
        write!(out, "{}", ports.start())?;
        if ports.start() != ports.end() {
            write!(out, "-{}", ports.end())?;
        }
        out.write_str(if *udp { "/udp" } else { "" })
    }
}
