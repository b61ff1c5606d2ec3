//! Describes, by queries to the kernel, a socket that another process created: the endpoint at which it is bound.

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
    /// A UDP socket with this port that its holder has connected. The kernel then reports another address than that of
    /// bind(2) if that was a wildcard.
    ConnectedUdp(u16),
    /// A Unix socket that is bound to a file of this name, and is not connected. It listens once its holder calls listen(2).
    /// The kernel knows the path that was passed to bind(2), and the broker passes only the name.
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
            LocalAddress::Unix(path) if listens || !socket::is_connected(&socket).ok()? => {
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
                (libc::SOCK_DGRAM, libc::IPPROTO_UDP) if socket::is_connected(&socket).ok()? => {
                    Some(Self::ConnectedUdp(address.port()))
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
            (Self::ConnectedUdp(port), Endpoint::Udp(inet)) => *port == inet.port,
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
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use nix::sys::socket::UnixAddr;

    use super::*;
    use crate::sys::socket::{AddressFamily, SockType};

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

    #[test]
    fn a_udp_socket_that_was_connected_is_known_by_its_port() {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        socket.connect("127.0.0.1:9").unwrap();
        let bound = BoundSocket::of(&socket).unwrap();
        let is_at = |endpoint: String| bound.is_at(&endpoint.parse().unwrap());
        assert!(is_at(format!("*:{port}/udp")));
        assert!(!is_at(format!("*:{port}")) && !is_at(format!("*:{}/udp", port.wrapping_add(1).max(1))));
    }

    #[test]
    fn a_unix_socket_is_described_before_it_listens_and_not_if_it_was_connected() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let bound = |name: &str| {
            let socket = socket::open(AddressFamily::Unix, SockType::SeqPacket).unwrap();
            nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path(name)).unwrap()).unwrap();
            socket
        };
        let (server, client) = (bound("server"), bound("client"));
        for socket in [&server, &client] {
            assert!(matches!(BoundSocket::of(socket), Some(BoundSocket::Unix(UnixKind::Seqpacket, _))));
        }
        socket::listen(&server, 5).unwrap();
        socket::connect_unix(&client, &path("server")).unwrap();
        assert!(BoundSocket::of(&server).is_some() && BoundSocket::of(&client).is_none());
    }
}
