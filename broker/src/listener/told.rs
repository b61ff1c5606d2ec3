//! What the kernel says of a socket that somebody else made: where it listens, if it does.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use portreeve_protocol::{Endpoint, InetEndpoint, Text};
use rustix::net::{AddressFamily, SocketType, getsockname, ipproto, sockopt};

/// What a listener of ours can be, as the kernel tells it.
#[derive(Debug)]
pub enum Told {
    /// A TCP or UDP socket at this endpoint.
    At(Endpoint),
    /// A Unix socket of this type, bound to a file of this name; its directory is not told.
    File(SocketType, String),
}

impl Told {
    /// Asks the kernel; `None` for a socket that is no listener of any kind of ours, or is shut down.
    pub fn of(socket: impl AsFd) -> Option<Self> {
        let kind = sockopt::socket_type(&socket).ok()?;
        let listens = sockopt::socket_acceptconn(&socket).ok()?;
        let protocol = sockopt::socket_protocol(&socket).ok()?;
        let name = getsockname(&socket).ok()?;
        match sockopt::socket_domain(&socket).ok()? {
            AddressFamily::UNIX if listens => {
                let path = rustix::net::SocketAddrUnix::try_from(name).ok()?;
                let path = path.path()?.to_str().ok()?.to_owned();
                Some(Self::File(kind, path.rsplit('/').next().unwrap_or_default().to_owned()))
            }
            AddressFamily::INET | AddressFamily::INET6 => {
                let inet = inet(SocketAddr::try_from(name).ok()?)?;
                match (kind, protocol) {
                    (SocketType::STREAM, Some(ipproto::TCP)) if listens => {
                        Some(Self::At(Endpoint::Tcp(inet)))
                    }
                    (SocketType::DGRAM, Some(ipproto::UDP)) => Some(Self::At(Endpoint::Udp(inet))),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Whether this is a listener at that endpoint, as far as the kernel tells.
    pub fn is(&self, endpoint: &Endpoint) -> bool {
        match (self, endpoint) {
            (Self::At(told), endpoint) => told == endpoint,
            (Self::File(SocketType::STREAM, name), Endpoint::UnixStream(path))
            | (Self::File(SocketType::SEQPACKET, name), Endpoint::UnixSeqpacket(path)) => {
                path.rsplit('/').next() == Some(name.as_str())
            }
            _ => false,
        }
    }
}

fn inet(address: SocketAddr) -> Option<InetEndpoint> {
    let scope = match address {
        SocketAddr::V6(address) if address.scope_id() != 0 => {
            let name = nix::net::if_::if_indextoname(address.scope_id()).ok()?;
            Text::new(name.to_str().ok()?).ok()?
        }
        _ => Text::default(),
    };
    let ip: IpAddr = address.ip();
    (address.port() != 0).then_some(InetEndpoint { address: ip, port: address.port(), scope })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn a_socket_is_what_the_kernel_says_of_it() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let endpoint =
            |address: SocketAddr, suffix: &str| format!("{address}{suffix}").parse::<Endpoint>().unwrap();
        let (at_tcp, at_udp) =
            (endpoint(tcp.local_addr().unwrap(), ""), endpoint(udp.local_addr().unwrap(), "/udp"));
        assert!(Told::of(&tcp).unwrap().is(&at_tcp) && Told::of(&udp).unwrap().is(&at_udp));
        assert!(!Told::of(&tcp).unwrap().is(&at_udp) && !Told::of(&udp).unwrap().is(&at_tcp));
        assert!(!Told::of(&tcp).unwrap().is(&"127.0.0.1:1".parse().unwrap()));

        let connected = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let (pair, _other) = UnixDatagram::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Told::of(&connected).is_none() && Told::of(&pair).is_none() && Told::of(&null).is_none());

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mail.sock");
        let unix = Told::of(UnixListener::bind(&path).unwrap()).unwrap();
        assert!(unix.is(&Endpoint::UnixStream(Text::new(path.to_str().unwrap()).unwrap())));
        assert!(unix.is(&"/elsewhere/mail.sock".parse().unwrap()), "its directory is not told");
        assert!(!unix.is(&"/elsewhere/other.sock".parse().unwrap()));
        assert!(!unix.is(&"seqpacket:/elsewhere/mail.sock".parse().unwrap()));
    }
}
