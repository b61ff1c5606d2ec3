//! Neighbours: the hosts that this one knows are told of an address one by one, each by a question that it answers.
//!
//! Promises: a host that has not answered is asked three times, 250 ms apart; where one still has not then, or a gateway
//! is not known, or nobody is, all hosts are told by broadcast. For where the configuration says arp_all_hosts = false.
//! Sources: RFC 826 and RFC 4861 section 7.2.8 of the questions, rtnetlink(7) of the tables.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_core::Parseable as _;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use nix::errno::Errno;

use super::Addresses;
use super::announce::{Due, LATER};
use super::frame::{self, Hardware};
use crate::sys::Netlink;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
/// How often a host is asked, and how long it has to answer.
const TIMES: usize = 3;
const PAUSE: Duration = Duration::from_millis(250);
/// How many hosts are asked in a row.
const AT_ONCE: usize = 16;
/// How old a look at the kernel's tables may be.
const FRESH: Duration = Duration::from_secs(1);

/// A host at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Neighbour {
    index: u32,
    hardware: Hardware,
    address: IpAddr,
}

/// What was seen in the kernel's tables.
#[derive(Debug)]
struct Seen {
    at: Instant,
    hosts: Vec<Neighbour>,
    gateways: Vec<(u32, IpAddr)>,
}

/// The hosts that one address is told to.
#[derive(Debug, Default)]
struct Asked {
    series: u64,
    /// Who has not answered yet, and how often each was asked.
    waiting: Vec<(Neighbour, usize)>,
    /// There are others, whom no question reaches.
    others: bool,
}

/// What is known of other hosts.
#[derive(Debug, Default)]
pub struct Neighbours {
    seen: Option<Seen>,
    asked: HashMap<IpAddr, Asked>,
}

impl Addresses {
    /// What one round sends.
    pub(super) fn questions(&self, due: &Due, index: u32, own: Hardware) -> Vec<Vec<u8>> {
        let mut neighbours = self.neighbours.borrow_mut();
        if neighbours.asked.get(&due.address).is_none_or(|asked| asked.series != due.series) {
            let asked = self.begin_asking(&mut neighbours.seen, due, index);
            neighbours.asked.insert(due.address, asked);
        }
        let Some(asked) = neighbours.asked.get(&due.address) else { return Vec::new() };
        if asked.is_over(due.round) {
            let unheard = asked.others || !asked.waiting.is_empty();
            return if unheard { frame::announcement(own, due.address) } else { Vec::new() };
        }
        let next = asked.waiting.iter().filter(|(_, times)| *times <= due.round).take(AT_ONCE);
        next.map(|(host, _)| frame::question(own, due.address, (host.hardware, host.address))).collect()
    }

    /// When and how it goes on after a round that was sent.
    pub(super) fn after_questions(&self, due: &Due, now: Instant) -> Due {
        let mut neighbours = self.neighbours.borrow_mut();
        let Some(asked) = neighbours.asked.get_mut(&due.address).filter(|asked| !asked.is_over(due.round))
        else {
            neighbours.asked.remove(&due.address);
            return Due { at: now + LATER, began: now + LATER, round: 0, ..*due };
        };
        let sent = asked.waiting.iter_mut().filter(|(_, times)| *times <= due.round).take(AT_ONCE);
        sent.for_each(|(_, times)| *times = due.round + 1);
        match asked.waiting.iter().any(|(_, times)| *times <= due.round) {
            true => *due,
            false => Due { at: now + PAUSE, round: due.round + 1, ..*due },
        }
    }

    /// Hears that a host answers a question about an address: it knows the address now.
    pub(super) fn hear_answer(&self, address: IpAddr, host: IpAddr) {
        if let Some(asked) = self.neighbours.borrow_mut().asked.get_mut(&address) {
            asked.waiting.retain(|(waiting, _)| waiting.address != host);
        }
    }

    /// Hears one advertisement of IPv6; `WouldBlock` when there is none.
    pub(super) fn hear_advertisement(&self) -> io::Result<()> {
        let Some(packet) = &self.advertisements else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        if let Some((address, host)) = frame::answer(packet.receive()?.bytes()) {
            self.hear_answer(address.into(), host.into());
        }
        Ok(())
    }

    fn begin_asking(&self, seen: &mut Option<Seen>, due: &Due, index: u32) -> Asked {
        if seen.as_ref().is_none_or(|seen| seen.at.elapsed() > FRESH) {
            match Seen::look(&self.route) {
                Ok(now) => *seen = Some(now),
                Err(errno) => {
                    tracing::warn!(%errno, "the neighbours cannot be listed; all hosts are told by broadcast");
                    return Asked { series: due.series, others: true, ..Asked::default() };
                }
            }
        }
        let Some(seen) = seen else { return Asked::default() };
        let same = |other: IpAddr| other.is_ipv4() == due.address.is_ipv4() && other != due.address;
        let hosts = seen.hosts.iter().filter(|host| host.index == index && same(host.address));
        let waiting: Vec<(Neighbour, usize)> = hosts.map(|host| (*host, 0)).collect();
        let known = |gateway: IpAddr| waiting.iter().any(|(host, _)| host.address == gateway);
        let mut gateways = seen.gateways.iter().filter(|(at, gateway)| *at == index && same(*gateway));
        let others = waiting.is_empty() || gateways.any(|(_, gateway)| !known(*gateway));
        Asked { series: due.series, waiting, others }
    }
}

impl Asked {
    /// Whether nobody is asked any more in this round.
    fn is_over(&self, round: usize) -> bool {
        round >= TIMES || self.waiting.is_empty()
    }
}

impl Seen {
    fn look(route: &Netlink) -> Result<Self, Errno> {
        let hosts = route.dump(RTM_GETNEIGH, &NeighbourMessage::default(), |kind, body| {
            if kind == RTM_NEWNEIGH { host(body) } else { None }
        })?;
        let gateways = route.dump(RTM_GETROUTE, &RouteMessage::default(), |kind, body| {
            if kind == RTM_NEWROUTE { gateway(body) } else { None }
        })?;
        Ok(Self { at: Instant::now(), hosts, gateways })
    }
}

/// The host of a neighbour's entry whose hardware address is known.
fn host(body: &[u8]) -> Option<Neighbour> {
    let message = NeighbourMessage::parse(body).ok()?;
    let known = [
        NeighbourState::Reachable,
        NeighbourState::Stale,
        NeighbourState::Delay,
        NeighbourState::Probe,
        NeighbourState::Permanent,
    ];
    if !known.contains(&message.header.state) {
        return None;
    }
    let (mut address, mut hardware) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(own)) => address = Some(own.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(own)) => address = Some(own.into()),
            NeighbourAttribute::LinkLayerAddress(own) => hardware = own.try_into().ok(),
            _ => {}
        }
    }
    // A group is no host.
    let hardware = hardware.filter(|hardware: &Hardware| hardware[0] & 1 == 0)?;
    Some(Neighbour { index: message.header.ifindex, hardware, address: address? })
}

/// The interface and the gateway of a route that has one.
fn gateway(body: &[u8]) -> Option<(u32, IpAddr)> {
    let (mut index, mut gateway) = (None, None);
    for attribute in RouteMessage::parse(body).ok()?.attributes {
        match attribute {
            RouteAttribute::Oif(own) => index = Some(own),
            RouteAttribute::Gateway(RouteAddress::Inet(own)) => gateway = Some(own.into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(own)) => gateway = Some(own.into()),
            _ => {}
        }
    }
    Some((index?, gateway?))
}
