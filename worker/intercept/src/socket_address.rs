//! The address argument of bind(2), as bytes that a program wrote.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The bytes of an address that matter: a sockaddr_in6 without more.
pub const MAX_LENGTH: usize = 28;

/// The shortest sockaddr_in6 that the kernel accepts: one without scope. See RFC 2133.
const SHORT_INET6: usize = 24;

/// An IPv4 or IPv6 address and port. See ip(7) and ipv6(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAddress {
    /// The address.
    pub address: IpAddr,
    /// The port; 0 lets the kernel choose one.
    pub port: u16,
    /// The interface's index of a link-local IPv6 address; 0 for none.
    pub scope: u32,
}

impl SocketAddress {
    /// Reads the address; `None` if it is of another family, or if the kernel refuses its length.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (family, rest) = bytes.split_first_chunk()?;
        let (port, rest) = rest.split_first_chunk()?;
        let port = u16::from_be_bytes(*port);
        match i32::from(u16::from_ne_bytes(*family)) {
            libc::AF_INET if bytes.len() >= size_of::<libc::sockaddr_in>() => {
                let octets: [u8; 4] = *rest.first_chunk()?;
                Some(Self { address: Ipv4Addr::from(octets).into(), port, scope: 0 })
            }
            libc::AF_INET6 if bytes.len() >= SHORT_INET6 => {
                let (_flow, rest) = rest.split_first_chunk::<4>()?;
                let (octets, rest) = rest.split_first_chunk::<16>()?;
                let scope = rest.first_chunk().map_or(0, |scope| u32::from_ne_bytes(*scope));
                Some(Self { address: Ipv6Addr::from(*octets).into(), port, scope })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(port: u16, octets: [u8; 4]) -> Vec<u8> {
        let family = u16::try_from(libc::AF_INET).unwrap_or_default().to_ne_bytes();
        [&family[..], &port.to_be_bytes(), &octets, &[0; 8]].concat()
    }

    fn inet6(port: u16, address: Ipv6Addr, scope: u32) -> Vec<u8> {
        let family = u16::try_from(libc::AF_INET6).unwrap_or_default().to_ne_bytes();
        [&family[..], &port.to_be_bytes(), &[9; 4], &address.octets(), &scope.to_ne_bytes()].concat()
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        let ipv4 = SocketAddress { address: Ipv4Addr::new(192, 0, 2, 1).into(), port: 25, scope: 0 };
        assert_eq!(SocketAddress::parse(&inet(25, [192, 0, 2, 1])), Some(ipv4));
        let local: Ipv6Addr = "fe80::1".parse().unwrap_or(Ipv6Addr::UNSPECIFIED);
        let ipv6 = SocketAddress { address: local.into(), port: 587, scope: 3 };
        let bytes = inet6(587, local, 3);
        assert_eq!(SocketAddress::parse(&bytes), Some(ipv6));
        assert_eq!(
            SocketAddress::parse(bytes.get(..24).unwrap_or_default()),
            Some(SocketAddress { scope: 0, ..ipv6 })
        );
    }

    #[test]
    fn bytes_that_the_kernel_refuses_or_another_family_are_no_address() {
        let (ipv4, ipv6) = (inet(25, [127, 0, 0, 1]), inet6(25, Ipv6Addr::LOCALHOST, 0));
        for length in 0..16 {
            assert_eq!(SocketAddress::parse(ipv4.get(..length).unwrap_or_default()), None, "{length}");
        }
        for length in 0..24 {
            assert_eq!(SocketAddress::parse(ipv6.get(..length).unwrap_or_default()), None, "{length}");
        }
        for family in [0, 1, 16, 17, u16::MAX] {
            let mut bytes = ipv6.clone();
            bytes.splice(..2, u16::to_ne_bytes(family));
            assert_eq!(SocketAddress::parse(&bytes), None, "{family}");
        }
    }
}
