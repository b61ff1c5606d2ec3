//! Endpoints: the address that a listener is bound to.
//!
//! [`FromStr`] and [`Display`](fmt::Display) use the notation of the configuration file:
//!
//! | text | endpoint |
//! |---|---|
//! | `*:25`, `:25` | TCP, all IPv4 addresses |
//! | `192.0.2.1:25` | TCP, one IPv4 address |
//! | `[*]:25`, `[::]:25` | TCP, all IPv6 addresses |
//! | `[2001:db8::1]:25` | TCP, one IPv6 address |
//! | `[fe80::1%eth0]:25` | TCP, a link-local IPv6 address on an interface |
//! | any of these with `/udp` | UDP |
//! | `/run/mail.sock` | Unix stream socket |
//! | `seqpacket:/run/mail.sock` | Unix sequenced-packet socket |
//!
//! An endpoint that a peer sends may be none of these: no port, an interface where none belongs, a path that is not absolute.
//! It is printed as a text that is no notation either, so it is never taken for another endpoint.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bounded::Text;

/// The maximum length of a Unix socket's path in bytes, without the terminating NUL: sun_path, see unix(7).
pub const MAX_PATH: usize = 107;
/// The maximum length of an interface name in bytes, without the terminating NUL: IFNAMSIZ, see netdevice(7).
pub const MAX_INTERFACE: usize = 15;

/// The transport and address of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Endpoint {
    /// A TCP socket.
    Tcp(InetEndpoint),
    /// A UDP socket.
    Udp(InetEndpoint),
    /// A Unix stream socket at an absolute path.
    UnixStream(Text<MAX_PATH>),
    /// A Unix sequenced-packet socket at an absolute path.
    UnixSeqpacket(Text<MAX_PATH>),
}

/// An IP address and port; for a link-local IPv6 address also its interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InetEndpoint {
    /// The address; the unspecified address (`0.0.0.0`, `::`) means all addresses.
    pub address: IpAddr,
    /// The port, 1 to 65535.
    pub port: u16,
    /// The interface name of a link-local IPv6 address (RFC 4007 section 11); empty for every other address.
    pub scope: Text<MAX_INTERFACE>,
}

/// The reason that a text is not a valid endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The port is missing.
    #[error("the port is missing: write ADDRESS:PORT, [IPV6]:PORT or *:PORT")]
    NoPort,
    /// The text is a port alone.
    #[error("the address is missing: write *:{0} or an address and port")]
    NoAddress(u16),
    /// The port is not a number from 1 to 65535.
    #[error("the port {0:?} is not a number from 1 to 65535")]
    Port(String),
    /// The address is not an IPv4 address.
    #[error(
        "{0:?} is not an IPv4 address: write an IPv6 address in brackets, [2001:db8::1]:25, and an address instead of a host name"
    )]
    Address(String),
    /// The text in brackets is not an IPv6 address.
    #[error("{0:?} in brackets is not an IPv6 address")]
    Address6(String),
    /// The text after `%` is not an interface name.
    #[error("{0:?} is not an interface name of at most {MAX_INTERFACE} characters")]
    Scope(String),
    /// The text after `/` is not a transport.
    #[error("{0:?} is not a transport: write tcp or udp")]
    Transport(String),
    /// The path of a Unix socket is too long. The value is its length in bytes.
    #[error("the path has {0} bytes, and the path of a Unix socket has at most {MAX_PATH}")]
    Path(usize),
}

impl Endpoint {
    /// The address and port of a TCP or UDP endpoint; `None` for a Unix socket.
    pub fn inet(&self) -> Option<&InetEndpoint> {
        match self {
            Endpoint::Tcp(inet) | Endpoint::Udp(inet) => Some(inet),
            Endpoint::UnixStream(_) | Endpoint::UnixSeqpacket(_) => None,
        }
    }
}

impl fmt::Display for InetEndpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mark, scope, port) = (if self.scope.is_empty() { "" } else { "%" }, &self.scope, self.port);
        match self.address {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => write!(out, "*{mark}{scope}:{port}"),
            IpAddr::V4(address) => write!(out, "{address}{mark}{scope}:{port}"),
            IpAddr::V6(address) => write!(out, "[{address}{mark}{scope}]:{port}"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(inet) => inet.fmt(out),
            Endpoint::Udp(inet) => write!(out, "{inet}/udp"),
            Endpoint::UnixStream(path) if path.starts_with('/') => path.fmt(out),
            Endpoint::UnixStream(path) => write!(out, "stream:{path}"),
            Endpoint::UnixSeqpacket(path) => write!(out, "seqpacket:{path}"),
        }
    }
}

fn path(text: &str) -> Result<Text<MAX_PATH>, EndpointError> {
    Text::new(text).map_err(|too_long| EndpointError::Path(too_long.found))
}

impl FromStr for InetEndpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((address, port)) = text.rsplit_once(':') else {
            return Err(text.parse().map_or(EndpointError::NoPort, EndpointError::NoAddress));
        };
        let number = Some(port).filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
        let port = match number.and_then(|port| port.parse().ok()) {
            Some(port) if port > 0 => port,
            _ => return Err(EndpointError::Port(port.to_owned())),
        };
        let bracketed = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let Some(inner) = bracketed else {
            let address = match address {
                "" | "*" => Ipv4Addr::UNSPECIFIED,
                other => other.parse().map_err(|_| EndpointError::Address(other.to_owned()))?,
            };
            return Ok(InetEndpoint { address: address.into(), port, scope: Text::default() });
        };
        let (address, scope) = inner.split_once('%').map_or((inner, None), |(a, s)| (a, Some(s)));
        let address = match address {
            "*" => Ipv6Addr::UNSPECIFIED,
            other => other.parse().map_err(|_| EndpointError::Address6(other.to_owned()))?,
        };
        let scope = match scope {
            None => Text::default(),
            Some(name) => Text::new(name)
                .ok()
                .filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/'))
                .ok_or_else(|| EndpointError::Scope(name.to_owned()))?,
        };
        Ok(InetEndpoint { address: address.into(), port, scope })
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(rest) = text.strip_prefix("seqpacket:") {
            return path(rest).map(Endpoint::UnixSeqpacket);
        }
        if text.starts_with('/') {
            return path(text).map(Endpoint::UnixStream);
        }
        match text.split_once('/') {
            None => text.parse().map(Endpoint::Tcp),
            Some((inet, "tcp")) => inet.parse().map(Endpoint::Tcp),
            Some((inet, "udp")) => inet.parse().map(Endpoint::Udp),
            Some((_, other)) => Err(EndpointError::Transport(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notation_is_parsed_and_printed() {
        for (text, printed) in [
            (":25", "*:25"),
            ("*:25", "*:25"),
            ("0.0.0.0:25", "*:25"),
            ("192.0.2.1:25/tcp", "192.0.2.1:25"),
            ("[*]:25", "[::]:25"),
            ("[::]:25", "[::]:25"),
            ("[2001:db8::1]:587", "[2001:db8::1]:587"),
            ("[fe80::1%eth0]:25", "[fe80::1%eth0]:25"),
            ("*:53/udp", "*:53/udp"),
            ("/run/mail.sock", "/run/mail.sock"),
            ("seqpacket:/run/mail.sock", "seqpacket:/run/mail.sock"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), printed);
            assert_eq!(printed.parse(), Ok(endpoint));
        }
    }

    #[test]
    fn an_endpoint_without_a_notation_is_not_printed_as_another() {
        let inet = |address: &str, scope: &str| InetEndpoint {
            address: address.parse().unwrap(),
            port: 25,
            scope: Text::truncated(scope),
        };
        let path = |text| Endpoint::UnixStream(Text::truncated(text));
        for (endpoint, printed) in [
            (path("192.0.2.1:25"), "stream:192.0.2.1:25"),
            (path("[::]:53/udp"), "stream:[::]:53/udp"),
            (path("seqpacket:/run/mail.sock"), "stream:seqpacket:/run/mail.sock"),
            (path("stream:/run/mail.sock"), "stream:stream:/run/mail.sock"),
            (path(""), "stream:"),
            (path(":25"), "stream::25"),
            (Endpoint::Tcp(inet("192.0.2.1", "eth0")), "192.0.2.1%eth0:25"),
            (Endpoint::Tcp(inet("0.0.0.0", "eth0")), "*%eth0:25"),
            (Endpoint::Udp(inet("0.0.0.0", "]")), "*%]:25/udp"),
        ] {
            assert_eq!(endpoint.to_string(), printed);
            assert!(printed.parse::<Endpoint>().is_err(), "{printed}");
        }
    }

    #[test]
    fn an_invalid_endpoint_is_refused_with_its_cause() {
        for (text, error) in [
            ("25", EndpointError::NoAddress(25)),
            ("192.0.2.1", EndpointError::NoPort),
            ("70000", EndpointError::NoPort),
            ("*:0", EndpointError::Port("0".into())),
            ("*:+25", EndpointError::Port("+25".into())),
            ("*:65536", EndpointError::Port("65536".into())),
            ("::1:25", EndpointError::Address("::1".into())),
            ("[192.0.2.1]:25", EndpointError::Address6("192.0.2.1".into())),
            ("mx1:25", EndpointError::Address("mx1".into())),
            ("[fe80::1%]:25", EndpointError::Scope(String::new())),
            ("*:25/sctp", EndpointError::Transport("sctp".into())),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
    }
}
