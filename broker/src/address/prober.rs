//! Probes whether another host uses an IPv4 address before it is added, and defends it while it is held.
//!
//! Promises: a probe claims nothing. A host that answers, or that probes for the same address, is a rival. When a rival
//! of a held address is heard, the broker publishes an event and announces the address, at most once in ten seconds. See
//! RFC 5227 sections 2.1 and 2.4.

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
use super::frame::{self, Arp};
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

/// A probe in progress.
#[derive(Debug)]
struct Probe {
    /// The MAC address that sends it.
    own_mac: Mac,
    /// The last other host that claimed the address.
    rival: Option<Mac>,
}

/// Detects conflicts of IPv4 addresses.
pub(super) struct Prober {
    table: Rc<RefCell<LeaseTable>>,
    interfaces: Rc<InterfaceCache>,
    frames: Rc<FrameSocket>,
    announcer: Rc<Announcer>,
    events: Rc<EventPublisher>,
    counters: Rc<AddressCounters>,
    /// By interface and address.
    probes: RefCell<HashMap<(u32, Ipv4Addr), Probe>>,
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

    /// Sends `count` probes for each IPv4 address, on behalf of this holder. Returns those that another host uses.
    pub async fn probe(&self, placements: &[Placement], count: u8, holder: Holder) -> HashMap<IpAddr, Mac> {
        if self.frames.socket().is_none() {
            return HashMap::new();
        }
        let mut targets = Vec::new();
        for placement in placements {
            let mac = self.interfaces.get(placement.index).and_then(|interface| interface.mac);
            if let (IpAddr::V4(address), Some(own_mac)) = (placement.address, mac) {
                targets.push((placement.index, address, own_mac));
                self.probes.borrow_mut().insert((placement.index, address), Probe { own_mac, rival: None });
            }
        }
        if targets.is_empty() {
            return HashMap::new();
        }
        let turns =
            self.turns.borrow_mut().entry(holder).or_insert_with(|| Rc::new(Semaphore::new(1))).clone();
        for _ in 0..count {
            let turn = turns.acquire().await; // never closed
            let next = tokio::time::Instant::now() + INTERVAL;
            for (index, address, own_mac) in &targets {
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
        let rivals = targets.into_iter().filter_map(|(index, address, _)| {
            let rival = probes.remove(&(index, address))?.rival?;
            Some((address.into(), rival))
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
        for address in [arp.sender.1, arp.target] {
            if let Some(probe) = self.probes.borrow_mut().get_mut(&(received.index, address))
                && let Some(rival) = arp.rival(probe.own_mac, address)
            {
                probe.rival = Some(rival);
            }
        }
        if arp.is_reply {
            self.announcer.acknowledge(arp.target.into(), arp.sender.1.into());
        }
        self.defend(received.index, &arp);
        Ok(())
    }

    /// Announces a held address again after another host used it as a sender.
    fn defend(&self, index: u32, arp: &Arp) {
        let (mac, sender) = arp.sender;
        let address = IpAddr::V4(sender);
        let is_held = self.table.borrow().get(address).is_some_and(|lease| {
            lease.placement.index == index
                && lease.state == LeaseState::Held
                && !lease.is_expired(BootTime::now())
        });
        let own_mac = self.interfaces.get(index).and_then(|interface| interface.mac);
        if !is_held || own_mac.is_none_or(|own_mac| own_mac == mac) {
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
