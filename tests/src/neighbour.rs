//! Address resolution by a neighbour: ARP requests (RFC 826), neighbour solicitations (RFC 4861), and the replies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type MacAddress = [u8; 6];

const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// The neighbour that sends requests: another host of [`crate::lan`].
#[derive(Clone, Copy, Debug)]
pub struct Neighbour {
    mac: MacAddress,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Neighbour {
    /// The host with this index in the argument of [`crate::lan::create`].
    pub fn number(number: usize) -> Self {
        let last = u8::try_from(201 + number).unwrap();
        // The last part of its IPv6 address has the same digits as that of its IPv4 address.
        let digits = u16::from_str_radix(&last.to_string(), 16).unwrap();
        Self {
            mac: [2, 0, 0, 0, 0, u8::try_from(number + 2).unwrap()],
            v4: Ipv4Addr::new(10, 1, 1, last),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, digits),
        }
    }

    /// The frame that requests the MAC address of `address`.
    pub fn request_for(&self, address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(wanted) => {
                let mut frame = self.ethernet([0xff; 6], 0x0806);
                frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
                frame.extend(self.mac);
                frame.extend(self.v4.octets());
                frame.extend([0; 6]);
                frame.extend(wanted.octets());
                frame
            }
            IpAddr::V6(wanted) => self.solicitation(wanted),
        }
    }

    /// Whether a frame is addressed to it only, as a reply is and an announcement is not.
    pub fn is_recipient_of(&self, frame: &[u8]) -> bool {
        frame.starts_with(&self.mac)
    }

    fn solicitation(&self, wanted: Ipv6Addr) -> Vec<u8> {
        // RFC 4291 section 2.7.1: the multicast group of the address's last 24 bits.
        let [.., a, b, c] = wanted.octets();
        let mut group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
        group[13..].copy_from_slice(&[a, b, c]);
        let mut body = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        body.extend(wanted.octets());
        body.extend([1, 1]);
        body.extend(self.mac);
        let sum = checksum(&[&self.v6.octets()[..], &group, &[0, 0, 0, 32, 0, 0, 0, ICMPV6], &body].concat());
        body[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut frame = self.ethernet([0x33, 0x33, 0xff, a, b, c], 0x86dd);
        frame.extend([0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
        frame.extend(self.v6.octets());
        frame.extend(group);
        frame.extend(body);
        frame
    }

    fn ethernet(&self, to: MacAddress, kind: u16) -> Vec<u8> {
        let mut frame = [to, self.mac].concat();
        frame.extend(kind.to_be_bytes());
        frame
    }
}

/// The address and the MAC address in a reply.
pub fn parse_reply(frame: &[u8]) -> Option<(IpAddr, MacAddress)> {
    let from = *frame.get(6..)?.first_chunk()?;
    match *frame.get(12..14)? {
        [8, 6] if frame.get(20..22)? == [0, 2] => {
            Some((IpAddr::from(*frame.get(28..)?.first_chunk::<4>()?), from))
        }
        [0x86, 0xdd] if (*frame.get(20)?, *frame.get(54)?) == (ICMPV6, ADVERTISEMENT) => {
            Some((IpAddr::from(*frame.get(62..)?.first_chunk::<16>()?), from))
        }
        _ => None,
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}
