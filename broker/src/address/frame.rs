//! The frames by which an address is announced and asked after, byte by byte.
//!
//! Promises: data only, touches nothing. Sources: RFC 826 (ARP), RFC 5227 (probes and announcements over it), RFC 4861
//! sections 4.4 and 7.2.6 (unsolicited neighbour advertisements), RFC 4443 section 2.3 (their checksum).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Hardware = [u8; 6];

const BROADCAST: Hardware = [0xff; 6];
/// The Ethernet address of ff02::1, RFC 2464 section 7.
const ALL_NODES: Hardware = [0x33, 0x33, 0, 0, 0, 1];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const ICMPV6: u8 = 58;

/// What an ARP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Whose packet it is.
    pub sender: (Hardware, Ipv4Addr),
    /// Whom it asks for or answers.
    pub target: Ipv4Addr,
    /// Whether it answers.
    pub is_reply: bool,
}

/// The frames of one round of announcements: an ARP request and an ARP reply, or one neighbour advertisement.
pub fn announcement(hardware: Hardware, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(own) => {
            let arp = |operation, target| arp(BROADCAST, operation, (hardware, own), (target, own));
            vec![arp(REQUEST, [0; 6]), arp(REPLY, hardware)]
        }
        IpAddr::V6(own) => vec![advertisement(hardware, own)],
    }
}

/// Asks whether anybody has an address, without claiming it.
pub fn probe(hardware: Hardware, address: Ipv4Addr) -> Vec<u8> {
    arp(BROADCAST, REQUEST, (hardware, Ipv4Addr::UNSPECIFIED), ([0; 6], address))
}

/// Asks one host for its own address in the name of ours: by asking it tells where ours is, and the host answers. What
/// families do not have in common is never asked.
pub fn question(hardware: Hardware, own: IpAddr, host: (Hardware, IpAddr)) -> Vec<u8> {
    match (own, host.1) {
        (IpAddr::V4(own), IpAddr::V4(target)) => arp(host.0, REQUEST, (hardware, own), ([0; 6], target)),
        (IpAddr::V6(own), IpAddr::V6(target)) => {
            // Type 135, code 0, checksum to come; then the target, and the option of the sender's link-layer address.
            let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
            body.extend(target.octets());
            body.extend([1, 1]);
            body.extend(hardware);
            icmp((host.0, target), (hardware, own), body)
        }
        _ => Vec::new(),
    }
}

/// Of a neighbour advertisement that answers a question: whose question it was, and who answers.
pub fn answer(frame: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let packet: &[u8; 78] = frame.first_chunk()?;
    let octets = |at: usize| packet.get(at..)?.first_chunk::<16>().copied().map(Ipv6Addr::from);
    let is_advertisement = packet.get(12..14)? == [0x86, 0xdd] && packet[20] == ICMPV6 && packet[54] == 136;
    is_advertisement.then_some((octets(38)?, octets(62)?))
}

fn arp(to: Hardware, operation: u16, sender: (Hardware, Ipv4Addr), target: (Hardware, Ipv4Addr)) -> Vec<u8> {
    let mut frame = ethernet(to, sender.0, 0x0806);
    // Hardware type Ethernet, protocol IPv4, and the lengths of their addresses.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (hardware, address) in [sender, target] {
        frame.extend(hardware);
        frame.extend(address.octets());
    }
    frame
}

fn advertisement(hardware: Hardware, own: Ipv6Addr) -> Vec<u8> {
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type 136, code 0, checksum to come, override set.
    let mut body = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    body.extend(own.octets());
    // The option of the target's link-layer address, of 8 bytes.
    body.extend([2, 1]);
    body.extend(hardware);
    icmp((ALL_NODES, to), (hardware, own), body)
}

/// An ICMPv6 packet of the link, with its checksum.
fn icmp(to: (Hardware, Ipv6Addr), from: (Hardware, Ipv6Addr), mut body: Vec<u8>) -> Vec<u8> {
    let ((hardware, to), (sender, own)) = (to, from);
    let length = u16::try_from(body.len()).unwrap_or_default();
    let pseudo =
        [&own.octets()[..], &to.octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, ICMPV6], &body];
    let sum = checksum(&pseudo.concat());
    if let Some(place) = body.get_mut(2..4) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    let mut frame = ethernet(hardware, sender, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    // A hop limit of 255 shows the receiver that no router passed it on.
    frame.extend([ICMPV6, 255]);
    frame.extend(own.octets());
    frame.extend(to.octets());
    frame.extend(body);
    frame
}

fn ethernet(to: Hardware, from: Hardware, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// The Internet checksum of an even number of bytes, RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

impl Arp {
    /// Reads an Ethernet frame; `None` where it is no ARP for IPv4 over Ethernet.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let (head, rest) = frame.split_at_checked(14)?;
        let packet: &[u8; 28] = rest.first_chunk()?;
        if head.get(12..)? != [8, 6] || packet.get(..6)? != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let hardware = *packet.get(8..14)?.first_chunk()?;
        let octets = |at: usize| packet.get(at..)?.first_chunk::<4>().copied().map(Ipv4Addr::from);
        let is_reply = packet.get(6..8)? == REPLY.to_be_bytes();
        Some(Self { sender: (hardware, octets(14)?), target: octets(24)?, is_reply })
    }

    /// Whose claim it is on an address that `own` asks for or has: the other host's, where there is one. A probe of
    /// another host for the same address is a claim, RFC 5227 section 2.1.1.
    pub fn rival(&self, own: Hardware, address: Ipv4Addr) -> Option<Hardware> {
        let (hardware, sender) = self.sender;
        let claims = sender == address || (sender.is_unspecified() && self.target == address);
        (claims && hardware != own).then_some(hardware)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Hardware = [2, 0, 0, 0, 0, 1];
    const THEIRS: Hardware = [2, 0, 0, 0, 0, 2];

    #[test]
    fn a_probe_claims_nothing_and_a_rivals_is_a_claim() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let ours = Arp::read(&probe(OURS, address)).unwrap();
        assert_eq!(ours.sender, (OURS, Ipv4Addr::UNSPECIFIED));
        assert_eq!(ours.target, address);
        assert_eq!(ours.rival(OURS, address), None);
        assert_eq!(Arp::read(&probe(THEIRS, address)).unwrap().rival(OURS, address), Some(THEIRS));
        assert_eq!(ours.rival(THEIRS, Ipv4Addr::new(192, 0, 2, 2)), None);
    }

    #[test]
    fn a_frame_that_is_short_or_of_another_kind_says_nothing() {
        let whole = announcement(THEIRS, "192.0.2.1".parse().unwrap()).remove(0);
        assert!(Arp::read(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(Arp::read(&whole[..length]), None, "{length} bytes");
        }
        for at in 12..20 {
            let mut other = whole.clone();
            other[at] ^= 0x40;
            assert_eq!(Arp::read(&other), None, "byte {at}");
        }
    }

    #[test]
    fn the_checksum_of_an_advertisement_adds_up() {
        let frame = announcement(OURS, "2001:db8::1".parse().unwrap()).remove(0);
        let (addresses, body) = (&frame[22..54], &frame[54..]);
        let pseudo = [addresses, &32_u32.to_be_bytes(), &[0, 0, 0, 58], body].concat();
        assert_eq!(checksum(&pseudo), 0);
    }
}
