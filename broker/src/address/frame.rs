//! Builds and parses the frames that announce addresses and probe for them. Data only.
//!
//! See RFC 826 (ARP), RFC 5227 (probes and announcements), RFC 4861 sections 4.4 and 7.2.6 (unsolicited neighbour
//! advertisements), RFC 4443 section 2.3 (their checksum).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::sys::interface::Mac;

const BROADCAST: Mac = [0xff; 6];
/// The MAC address of ff02::1; RFC 2464 section 7.
const ALL_NODES: Mac = [0x33, 0x33, 0, 0, 0, 1];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const ICMPV6: u8 = 58;

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// The MAC and IP address of its sender.
    pub sender: (Mac, Ipv4Addr),
    /// The IP address that it requests, or of the host that it answers.
    pub target: Ipv4Addr,
    /// Whether it is a reply; otherwise a request.
    pub is_reply: bool,
}

/// What a host does with an address, as an ARP packet of it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// It probes for the address: it only asks who has it, perhaps because it wants to use it.
    Probe,
    /// It uses the address.
    Use,
}

/// The frames of one announcement: an ARP request and an ARP reply, or one neighbour advertisement.
pub fn announcement(mac: Mac, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => {
            let arp = |operation, target| arp(BROADCAST, operation, (mac, address), (target, address));
            vec![arp(REQUEST, [0; 6]), arp(REPLY, mac)]
        }
        IpAddr::V6(address) => vec![advertisement(mac, address)],
    }
}

/// An ARP probe: a request for an address that does not claim it.
pub fn probe(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    arp(BROADCAST, REQUEST, (mac, Ipv4Addr::UNSPECIFIED), ([0; 6], address))
}

/// A request to one host for that host's own address, sent from `source`: the host learns the MAC address of `source`, and
/// answers. Empty for addresses of different families.
pub fn unicast_request(mac: Mac, source: IpAddr, host: (Mac, IpAddr)) -> Vec<u8> {
    match (source, host.1) {
        (IpAddr::V4(source), IpAddr::V4(target)) => arp(host.0, REQUEST, (mac, source), ([0; 6], target)),
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            // Type 135, code 0, checksum filled in later; the target; the option "source link-layer address".
            let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
            body.extend(target.octets());
            body.extend([1, 1]);
            body.extend(mac);
            icmp((host.0, target), (mac, source), body)
        }
        _ => Vec::new(),
    }
}

/// Parses a neighbour advertisement: the address that it was sent to, and the address of the host that sent it.
pub fn parse_advertisement(frame: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let packet: &[u8; 78] = frame.first_chunk()?;
    let octets = |at: usize| packet.get(at..)?.first_chunk::<16>().copied().map(Ipv6Addr::from);
    let is_advertisement = packet.get(12..14)? == [0x86, 0xdd] && packet[20] == ICMPV6 && packet[54] == 136;
    is_advertisement.then_some((octets(38)?, octets(62)?))
}

fn arp(to: Mac, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut frame = ethernet(to, sender.0, 0x0806);
    // Hardware type Ethernet, protocol IPv4, and the lengths of their addresses.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        frame.extend(mac);
        frame.extend(address.octets());
    }
    frame
}

fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type 136, code 0, checksum filled in later, the override flag.
    let mut body = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    body.extend(address.octets());
    // The option "target link-layer address", 8 bytes long.
    body.extend([2, 1]);
    body.extend(mac);
    icmp((ALL_NODES, to), (mac, address), body)
}

/// An ICMPv6 packet with its checksum.
fn icmp(to: (Mac, Ipv6Addr), from: (Mac, Ipv6Addr), mut body: Vec<u8>) -> Vec<u8> {
    let ((mac, to), (sender, source)) = (to, from);
    let length = u16::try_from(body.len()).unwrap_or_default();
    let pseudo =
        [&source.octets()[..], &to.octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, ICMPV6], &body];
    let sum = checksum(&pseudo.concat());
    if let Some(field) = body.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    let mut frame = ethernet(mac, sender, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    // A hop limit of 255 proves that no router forwarded the packet.
    frame.extend([ICMPV6, 255]);
    frame.extend(source.octets());
    frame.extend(to.octets());
    frame.extend(body);
    frame
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// The Internet checksum of an even number of bytes; RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

impl Arp {
    /// Parses an Ethernet frame; `None` if it is not ARP for IPv4 over Ethernet.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (head, rest) = frame.split_at_checked(14)?;
        let packet: &[u8; 28] = rest.first_chunk()?;
        if head.get(12..)? != [8, 6] || packet.get(..6)? != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let mac = *packet.get(8..14)?.first_chunk()?;
        let octets = |at: usize| packet.get(at..)?.first_chunk::<4>().copied().map(Ipv4Addr::from);
        let is_reply = packet.get(6..8)? == REPLY.to_be_bytes();
        Some(Self { sender: (mac, octets(14)?), target: octets(24)?, is_reply })
    }

    /// What the sender of this packet does with an address, if anything: RFC 5227 section 2.1.1.
    pub fn claim_to(&self, address: Ipv4Addr) -> Option<Claim> {
        match self.sender.1 {
            sender if sender == address => Some(Claim::Use),
            // A request by a host that has no address yet. An answer is no question.
            sender if sender.is_unspecified() && self.target == address && !self.is_reply => {
                Some(Claim::Probe)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 2];

    #[test]
    fn a_sender_uses_its_address_and_a_sender_without_one_only_asks() {
        let (address, other) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let probe = Arp::parse(&probe(THEIRS, address)).unwrap();
        assert_eq!(probe.sender, (THEIRS, Ipv4Addr::UNSPECIFIED));
        assert_eq!(probe.claim_to(address), Some(Claim::Probe));
        assert_eq!(probe.claim_to(other), None);
        assert_eq!(Arp { is_reply: true, ..probe }.claim_to(address), None);
        for frame in announcement(THEIRS, address.into()) {
            let announcement = Arp::parse(&frame).unwrap();
            assert_eq!(announcement.claim_to(address), Some(Claim::Use));
            assert_eq!(announcement.claim_to(other), None);
        }
        // Who asks for the address of another host does not claim it.
        let question = Arp { sender: (THEIRS, other), target: address, is_reply: false };
        assert_eq!(question.claim_to(address), None);
        assert_eq!(question.claim_to(other), Some(Claim::Use));
    }

    #[test]
    fn short_frames_and_frames_of_another_kind_are_ignored() {
        let whole = announcement(THEIRS, "192.0.2.1".parse().unwrap()).remove(0);
        assert!(Arp::parse(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(Arp::parse(&whole[..length]), None, "{length} bytes");
        }
        for at in 12..20 {
            let mut other = whole.clone();
            other[at] ^= 0x40;
            assert_eq!(Arp::parse(&other), None, "byte {at}");
        }
    }

    #[test]
    fn an_advertisement_has_a_valid_checksum() {
        let frame = announcement(OURS, "2001:db8::1".parse().unwrap()).remove(0);
        let (addresses, body) = (&frame[22..54], &frame[54..]);
        let pseudo = [addresses, &32_u32.to_be_bytes(), &[0, 0, 0, 58], body].concat();
        assert_eq!(checksum(&pseudo), 0);
    }
}
