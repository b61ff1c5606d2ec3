//! Describes, by queries to the kernel, a socket that another process created: the endpoint at which it listens.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use portreeve_protocol::{Endpoint, InetEndpoint, Text};

use crate::sys::socket::{self, LocalAddress};
use crate::sys::sockopt;

/// A listening socket of a kind that the broker creates, as the kernel describes it.
#[derive(Debug)]
pub enum BoundSocket {
    /// A TCP listener or UDP socket at this endpoint.
    Inet(Endpoint),
    /// A Unix listener that is bound to a file of this name. The kernel knows the path that was passed to bind(2), and the
    /// broker passes only the name.
    Unix(UnixKind, String),
}

/// The type of a Unix listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnixKind {
    /// SOCK_STREAM
    Stream,
    /// SOCK_SEQPACKET
    Seqpacket,
}

impl BoundSocket {
    /// Queries the kernel; `None` for a socket that is not a listener of a kind that the broker creates, or that is shut
    /// down.
    pub fn of(socket: impl AsFd) -> Option<Self> {
        let kind = sockopt::socket_type(&socket).ok()?;
        let listens = sockopt::is_listening(&socket).ok()?;
        let protocol = sockopt::protocol(&socket).ok()?;
        match socket::local_address(&socket).ok()? {
            LocalAddress::Unix(path) if listens => {
                let kind = match kind {
                    libc::SOCK_STREAM => UnixKind::Stream,
                    libc::SOCK_SEQPACKET => UnixKind::Seqpacket,
                    _ => return None,
                };
                let name = path?.file_name()?.to_str()?.to_owned();
                Some(Self::Unix(kind, name))
            }
            LocalAddress::Inet(address) => match (kind, protocol) {
                (libc::SOCK_STREAM, libc::IPPROTO_TCP) if listens => {
                    Some(Self::Inet(Endpoint::Tcp(inet(address)?)))
                }
                (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => Some(Self::Inet(Endpoint::Udp(inet(address)?))),
                _ => None,
            },
            LocalAddress::Unix(_) => None,
        }
    }

    /// Whether this is a listener at that endpoint, as far as the kernel knows.
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        match (self, endpoint) {
            (Self::Inet(bound), endpoint) => bound == endpoint,
            (Self::Unix(UnixKind::Stream, name), Endpoint::UnixStream(path))
            | (Self::Unix(UnixKind::Seqpacket, name), Endpoint::UnixSeqpacket(path)) => {
                path.rsplit('/').next() == Some(name.as_str())
            }
            _ => false,
        }
    }
}

fn inet(address: SocketAddr) -> Option<InetEndpoint> {
    let scope = match address {
        SocketAddr::V6(address) if address.scope_id() != 0 => {
            Text::new(&socket::interface_name(address.scope_id()).ok()?).ok()?
        }
        _ => Text::default(),
    };
    (address.port() != 0).then_some(InetEndpoint { address: address.ip(), port: address.port(), scope })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn a_socket_is_described_as_the_kernel_reports_it() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let endpoint =
            |address: SocketAddr, suffix: &str| format!("{address}{suffix}").parse::<Endpoint>().unwrap();
        let (at_tcp, at_udp) =
            (endpoint(tcp.local_addr().unwrap(), ""), endpoint(udp.local_addr().unwrap(), "/udp"));
        assert!(
            BoundSocket::of(&tcp).unwrap().is_at(&at_tcp) && BoundSocket::of(&udp).unwrap().is_at(&at_udp)
        );
        assert!(
            !BoundSocket::of(&tcp).unwrap().is_at(&at_udp) && !BoundSocket::of(&udp).unwrap().is_at(&at_tcp)
        );
        assert!(!BoundSocket::of(&tcp).unwrap().is_at(&"127.0.0.1:1".parse().unwrap()));

        let connected = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let (pair, _other) = UnixDatagram::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(
            BoundSocket::of(&connected).is_none()
                && BoundSocket::of(&pair).is_none()
                && BoundSocket::of(&null).is_none()
        );

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mail.sock");
        let unix = BoundSocket::of(UnixListener::bind(&path).unwrap()).unwrap();
        assert!(unix.is_at(&Endpoint::UnixStream(Text::new(path.to_str().unwrap()).unwrap())));
        assert!(unix.is_at(&"/elsewhere/mail.sock".parse().unwrap()), "the directory is not compared");
        assert!(!unix.is_at(&"/elsewhere/other.sock".parse().unwrap()));
        assert!(!unix.is_at(&"seqpacket:/elsewhere/mail.sock".parse().unwrap()));
    }
}
