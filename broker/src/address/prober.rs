//! Probes whether another host uses an IPv4 address before it is added, and defends it while it is held.
//!
//! Promises: a probe claims nothing. A host that answers is a rival; one that only probes for the same address too is a rival
//! if it does so again while the broker probes once more. None of this host's own interfaces is a rival, whichever of them
//! sends or receives a frame. When a rival uses a held address, the broker publishes an event and announces the address, at
//! most once in ten seconds. See RFC 5227 sections 2.1 and 2.4.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portreeve_protocol::EventCode;
use tokio::sync::Semaphore;

use super::announcer::Announcer;
use super::counters::AddressCounters;
use super::event_publisher::EventPublisher;
use super::fault::format_mac;
use super::frame::{self, Arp, Claim};
use super::frame_socket::FrameSocket;
use super::interface_cache::InterfaceCache;
use super::lease::LeaseState;
use super::lease_table::LeaseTable;
use crate::holder::Holder;
use crate::sys::BootTime;
use crate::sys::interface::Mac;
use crate::sys::packet::PacketSocket;
use crate::sys::rtnl::Placement;

/// The time between two probes, and from the last probe to the result.
const INTERVAL: Duration = Duration::from_millis(200);
/// DEFEND_INTERVAL of the RFC.
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// The pause before another attempt when the rate limit allows no frame.
const RETRY: Duration = Duration::from_millis(10);

/// The longest pause before the broker probes once more: a random part of it, so that two hosts that probed at the same time
/// do not do so again.
const SECOND_ATTEMPT: Duration = Duration::from_secs(1);

/// Another host that probes for an address, or uses it, and its MAC address. The one that uses it is the greater.
pub(super) type Rival = (Claim, Mac);

/// An address to probe for: the interface, the address, and the MAC address of that interface.
type Target = (u32, Ipv4Addr, Mac);

/// Detects conflicts of IPv4 addresses.
pub(super) struct Prober {
    table: Rc<RefCell<LeaseTable>>,
    interfaces: Rc<InterfaceCache>,
    frames: Rc<FrameSocket>,
    announcer: Rc<Announcer>,
    events: Rc<EventPublisher>,
    counters: Rc<AddressCounters>,
    /// The rivals that were heard of each address that is probed for, by interface and address.
    probes: RefCell<HashMap<(u32, Ipv4Addr), Option<Rival>>>,
    /// When each address was last defended.
    defended: RefCell<HashMap<IpAddr, Instant>>,
    /// One request of each holder sends at a time, so that holders share the rate limit, however many requests they make.
    turns: RefCell<HashMap<Holder, Rc<Semaphore>>>,
}

impl Prober {
    pub fn new(
        table: Rc<RefCell<LeaseTable>>,
        interfaces: Rc<InterfaceCache>,
        frames: Rc<FrameSocket>,
        announcer: Rc<Announcer>,
        events: Rc<EventPublisher>,
        counters: Rc<AddressCounters>,
    ) -> Self {
        let (probes, defended, turns) = Default::default();
        Self { table, interfaces, frames, announcer, events, counters, probes, defended, turns }
    }

    /// Sends `count` probes for each IPv4 address, on behalf of this holder, and as many again for those that other hosts only
    /// probe for too. Returns the rivals.
    pub async fn probe(&self, placements: &[Placement], count: u8, holder: Holder) -> HashMap<IpAddr, Rival> {
        if self.frames.socket().is_none() {
            return HashMap::new();
        }
        let target = |placement: &Placement| match placement.address {
            IpAddr::V4(address) => {
                Some((placement.index, address, self.interfaces.get(placement.index)?.mac?))
            }
            IpAddr::V6(_) => None,
        };
        let targets: Vec<Target> = placements.iter().filter_map(target).collect();
        let mut rivals = self.probe_once(&targets, count, holder).await;
        let unclear =
            |(_, address, _): &Target| matches!(rivals.get(&IpAddr::from(*address)), Some((Claim::Probe, _)));
        let again: Vec<Target> = targets.into_iter().filter(unclear).collect();
        if !again.is_empty() {
            tokio::time::sleep(SECOND_ATTEMPT.mul_f64(random_fraction())).await;
            rivals.retain(|_, (claim, _)| *claim == Claim::Use);
            rivals.extend(self.probe_once(&again, count, holder).await);
        }
        rivals
    }

    async fn probe_once(&self, targets: &[Target], count: u8, holder: Holder) -> HashMap<IpAddr, Rival> {
        if targets.is_empty() {
            return HashMap::new();
        }
        for (index, address, _) in targets {
            self.probes.borrow_mut().insert((*index, *address), None);
        }
        let turns =
            self.turns.borrow_mut().entry(holder).or_insert_with(|| Rc::new(Semaphore::new(1))).clone();
        for _ in 0..count {
            let turn = turns.acquire().await; // never closed
            let next = tokio::time::Instant::now() + INTERVAL;
            for (index, address, own_mac) in targets {
                while !self.frames.may_send(*index, 1) {
                    tokio::time::sleep(RETRY).await;
                }
                self.frames.send(*index, &frame::probe(*own_mac, *address));
            }
            drop(turn);
            tokio::time::sleep_until(next).await;
        }
        drop(turns);
        self.turns.borrow_mut().retain(|_, turns| Rc::strong_count(turns) > 1);
        self.receive_all();
        let mut probes = self.probes.borrow_mut();
        let rivals = targets.iter().filter_map(|(index, address, _)| {
            let rival = probes.remove(&(*index, *address))??;
            Some(((*address).into(), rival))
        });
        rivals.collect()
    }

    /// Duplicates the socket of [`Prober::receive`], to wait on it.
    ///
    /// # Errors
    /// EMFILE.
    pub fn socket(&self) -> io::Result<Option<UnixDatagram>> {
        self.frames.socket().map(PacketSocket::try_clone).transpose()
    }

    fn receive_all(&self) {
        while let Ok(()) = self.receive() {}
    }

    /// Receives one ARP packet.
    ///
    /// # Errors
    /// `WouldBlock` when none is queued.
    pub fn receive(&self) -> io::Result<()> {
        let received = self.frames.receive()?;
        let Some(arp) = Arp::parse(received.bytes()) else { return Ok(()) };
        if self.interfaces.has_mac(arp.sender.0) {
            return Ok(());
        }
        for address in [arp.sender.1, arp.target] {
            if let Some(rival) = self.probes.borrow_mut().get_mut(&(received.index, address))
                && let Some(claim) = arp.claim_to(address)
            {
                *rival = (*rival).max(Some((claim, arp.sender.0)));
            }
        }
        if arp.is_reply {
            self.announcer.acknowledge(arp.target.into(), arp.sender.1.into());
        }
        self.defend(received.index, &arp);
        Ok(())
    }

    /// Announces a held address again after another host used it.
    fn defend(&self, index: u32, arp: &Arp) {
        let (mac, sender) = arp.sender;
        let address = IpAddr::V4(sender);
        let is_held = self.table.borrow().get(address).is_some_and(|lease| {
            lease.placement.index == index
                && lease.state == LeaseState::Held
                && !lease.is_expired(BootTime::now())
        });
        let has_mac = self.interfaces.get(index).is_some_and(|interface| interface.mac.is_some());
        if !is_held || !has_mac {
            return;
        }
        let now = Instant::now();
        let mut defended = self.defended.borrow_mut();
        defended.retain(|_, last| now.duration_since(*last) < DEFEND_INTERVAL);
        if let Entry::Vacant(first) = defended.entry(address) {
            first.insert(now);
            drop(defended);
            self.counters.conflicts.up();
            let rival = format_mac(mac);
            tracing::warn!(%address, index, %rival, "another host uses this address too; announcing it again");
            if let Some(lease) = self.table.borrow().get(address) {
                self.events.address(lease, EventCode::AddressConflict, &rival);
            }
            self.announcer.announce(address);
        }
    }
}

/// A number from 0 to 1. A hash of nothing, with keys that the standard library chooses at random: see RandomState.
fn random_fraction() -> f64 {
    let bits = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ());
    f64::from(u32::try_from(bits >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}
