//! Whether another host has an address: ARP probes before it is added, and an ear on the wire while it is held.
//!
//! Promises: a probe claims nothing; a host that answers, or that probes for the same address, is a rival. A rival of an
//! address that is held is told of, and answered with an announcement at most once in ten seconds. Touches the packet
//! socket. Source: RFC 5227 sections 2.1 and 2.4.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use portreeve_protocol::EventCode;

use super::frame::{self, Arp, Hardware};
use super::lease::State;
use super::{Addresses, BootTime};
use crate::sys::rtnl::Place;

/// Between two probes, and from the last to the verdict.
const PAUSE: Duration = Duration::from_millis(200);
/// How often an address is defended at most, DEFEND_INTERVAL.
const DEFEND: Duration = Duration::from_secs(10);
/// How long to wait where an interface may send no frame now.
const LATER: Duration = Duration::from_millis(10);

/// What was heard of rivals.
#[derive(Debug, Default)]
pub struct Heard {
    /// What is asked for, with our own hardware address, and who claimed it.
    asked: HashMap<(u32, Ipv4Addr), (Hardware, Option<Hardware>)>,
    defended: HashMap<IpAddr, Instant>,
}

impl Addresses {
    /// Asks the network for IPv4 addresses, so many times, and gives those that another host has.
    pub(super) async fn probe(&self, places: &[Place], times: u8) -> HashMap<IpAddr, Hardware> {
        let mut asked = Vec::new();
        for place in places {
            let hardware = self.link(place.index).and_then(|link| link.hardware);
            if let (IpAddr::V4(address), Some(own)) = (place.address, hardware) {
                asked.push((place.index, address, own));
                self.heard.borrow_mut().asked.insert((place.index, address), (own, None));
            }
        }
        if self.packet.is_none() || asked.is_empty() {
            return HashMap::new();
        }
        for _ in 0..times {
            let next = tokio::time::Instant::now() + PAUSE;
            for (index, address, own) in &asked {
                while !self.may_send(*index, 1) {
                    tokio::time::sleep(LATER).await;
                }
                self.send(*index, &frame::probe(*own, *address));
            }
            tokio::time::sleep_until(next).await;
        }
        self.listen();
        let mut heard = self.heard.borrow_mut();
        let found = asked.into_iter().filter_map(|(index, address, _)| {
            let (_, rival) = heard.asked.remove(&(index, address))?;
            Some((address.into(), rival?))
        });
        found.collect()
    }

    /// Hears everything that has arrived.
    pub(super) fn listen(&self) {
        while let Ok(()) = self.listen_once() {}
    }

    /// Hears one packet; `WouldBlock` when there is none.
    pub(super) fn listen_once(&self) -> io::Result<()> {
        let Some(packet) = &self.packet else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let arrived = packet.receive()?;
        let Some(arp) = Arp::read(arrived.bytes()) else { return Ok(()) };
        for address in [arp.sender.1, arp.target] {
            if let Some((own, rival)) = self.heard.borrow_mut().asked.get_mut(&(arrived.index, address))
                && let Some(hardware) = arp.rival(*own, address)
            {
                *rival = Some(hardware);
            }
        }
        if arp.is_reply {
            self.hear_answer(arp.target.into(), arp.sender.1.into());
        }
        self.defend(arrived.index, &arp);
        Ok(())
    }

    fn defend(&self, index: u32, arp: &Arp) {
        let (hardware, sender) = arp.sender;
        let address = IpAddr::V4(sender);
        let held = |table: &super::Table| {
            table.get(address).is_some_and(|lease| {
                lease.place.index == index && lease.state == State::Held && !lease.is_over(BootTime::now())
            })
        };
        let own = self.link(index).and_then(|link| link.hardware);
        if !held(&self.table.borrow()) || own.is_none_or(|own| own == hardware) {
            return;
        }
        let now = Instant::now();
        let mut heard = self.heard.borrow_mut();
        heard.defended.retain(|_, last| now.duration_since(*last) < DEFEND);
        if let Entry::Vacant(first) = heard.defended.entry(address) {
            first.insert(now);
            drop(heard);
            self.counts.conflicts.up();
            let rival = hardware_text(hardware);
            tracing::warn!(%address, index, %rival, "another host has this address too; it is announced again");
            if let Some(lease) = self.table.borrow().get(address) {
                self.tell(lease, EventCode::AddressConflict, &rival);
            }
            self.announce(address);
        }
    }
}

/// A hardware address as people write it.
pub fn hardware_text(hardware: Hardware) -> String {
    let bytes: Vec<String> = hardware.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}
