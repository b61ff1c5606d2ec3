//! Address blocks in CIDR notation (RFC 4632 section 3.1, RFC 4291 section 2.3).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// A block of IPv4 or IPv6 addresses. A single address is a block of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is not an address block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not an address.
    #[error("{0:?} is not an address: write ADDRESS or ADDRESS/PREFIX")]
    Address(String),
    /// Not a prefix length of the address family.
    #[error("{0:?} is not a prefix length from 0 to {1}")]
    Prefix(String, u8),
    /// Bits are set beyond the prefix.
    #[error("{0} has bits set beyond its prefix: the block is {1}")]
    HostBits(String, Cidr),
    /// An IPv4-mapped IPv6 address.
    #[error("{0} is an IPv4-mapped IPv6 address: write the IPv4 address")]
    Mapped(String),
}

impl Cidr {
    /// The first address of the block.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The length of an address of this family in bits: 32 or 128.
    pub fn bits(&self) -> u8 {
        family_bits(self.address)
    }

    /// Whether it is a single address.
    pub fn is_single(&self) -> bool {
        self.prefix == self.bits()
    }

    /// Whether the block contains an address. An address of the other family is never contained.
    pub fn contains(&self, address: IpAddr) -> bool {
        family_bits(address) == self.bits() && masked(address, self.prefix) == self.address
    }
}

fn family_bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(address) & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6((u128::from(address) & mask).into())
        }
    }
}

/// Whether this is an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
pub(crate) fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if Ipv6Addr::to_ipv4_mapped(&address).is_some())
}

/// The remedy for an address that can never be managed, whatever the policy says; `None` if it can be. The kernel itself
/// would accept these.
pub fn not_manageable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("use another address; the unspecified address cannot be assigned to a host");
    }
    if address.is_loopback() {
        return Some("use another address; a loopback address exists on every host");
    }
    if address.is_multicast() {
        return Some(
            "use another address; a multicast address is joined by sockets, not assigned to an interface",
        );
    }
    match address {
        IpAddr::V4(address) if address.is_broadcast() => {
            Some("use another address; the broadcast address cannot be assigned to a host")
        }
        IpAddr::V4(address) if address.octets().first() == Some(&0) => {
            Some("use another address; addresses of 0.0.0.0/8 cannot be assigned to a host")
        }
        IpAddr::V4(_) => None,
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            Some("use the IPv4 address instead of an IPv4-mapped IPv6 address")
        }
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            Some("use another address; a link-local address is valid on one link only")
        }
        IpAddr::V6(_) => None,
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| CidrError::Address(address.to_owned()))?;
        if is_mapped(address) {
            return Err(CidrError::Mapped(text.to_owned()));
        }
        let bits = family_bits(address);
        let prefix = match prefix {
            None => bits,
            Some(prefix) => Some(prefix)
                .filter(|prefix| prefix.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|prefix| prefix.parse().ok())
                .filter(|prefix| *prefix <= bits)
                .ok_or_else(|| CidrError::Prefix(prefix.to_owned(), bits))?,
        };
        let block = Cidr { address: masked(address, prefix), prefix };
        if block.address != address {
            return Err(CidrError::HostBits(text.to_owned(), block));
        }
        Ok(block)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_single() {
            true => self.address.fmt(out),
            false => write!(out, "{}/{}", self.address, self.prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_contains_the_addresses_that_share_its_prefix() {
        for (block, inside, outside) in [
            ("10.1.1.0/24", "10.1.1.255", "10.1.2.0"),
            ("10.1.1.7", "10.1.1.7", "10.1.1.8"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "ffff::", "10.0.0.1"),
            ("192.0.2.128/25", "192.0.2.128", "192.0.2.127"),
        ] {
            let cidr: Cidr = block.parse().unwrap();
            assert_eq!(cidr.to_string(), block);
            assert!(cidr.contains(inside.parse().unwrap()), "{block} {inside}");
            assert!(!cidr.contains(outside.parse().unwrap()), "{block} {outside}");
        }
    }

    #[test]
    fn invalid_blocks_are_refused_with_the_cause() {
        for (text, reason) in [
            ("10.1.1", "is not an address"),
            ("10.1.1.0/33", "from 0 to 32"),
            ("10.1.1.0/+8", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("10.1.1.7/24", "the block is 10.1.1.0/24"),
            ("::ffff:10.1.1.0/120", "write the IPv4 address"),
        ] {
            let error = text.parse::<Cidr>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
