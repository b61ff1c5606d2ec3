//! Announces addresses to the neighbours: gratuitous ARP, and unsolicited neighbour advertisements.
//!
//! Promises: announces only a held address with a lease that has not expired, from an interface that has a carrier; a new
//! series of an address replaces its previous one; respects the rate limit of the frame socket.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::announcement_queue::{AnnouncementQueue, Next, Round};
use super::frame;
use super::frame_socket::FrameSocket;
use super::gateways::Gateways;
use super::interface_cache::InterfaceCache;
use super::lease::LeaseState;
use super::lease_table::LeaseTable;
use super::unicast_announcer::UnicastAnnouncer;
use crate::holder::Holder;
use crate::sys::packet::PacketSocket;
use crate::sys::{BootTime, Netlink};

/// The pause before another attempt when the rate limit allows no frame.
const RETRY: Duration = Duration::from_millis(10);

/// Announces the addresses of the lease table.
pub(super) struct Announcer {
    table: Rc<RefCell<LeaseTable>>,
    interfaces: Rc<InterfaceCache>,
    route: Rc<Netlink>,
    frames: Rc<FrameSocket>,
    queue: RefCell<AnnouncementQueue>,
    /// The number of the last series.
    series: Cell<u64>,
    /// Announces to known neighbours one by one; absent if announcements are broadcasts.
    unicast: Option<RefCell<UnicastAnnouncer>>,
    /// Receives the advertisements that acknowledge such announcements of IPv6 addresses.
    advertisements: Option<PacketSocket>,
    /// Wakes the lease loop: a round is due earlier.
    wake: Rc<Notify>,
}

impl Announcer {
    pub fn new(
        table: Rc<RefCell<LeaseTable>>,
        interfaces: Rc<InterfaceCache>,
        route: Rc<Netlink>,
        frames: Rc<FrameSocket>,
        (gateways, advertisements): (Option<Rc<Gateways>>, Option<PacketSocket>),
        wake: Rc<Notify>,
    ) -> Self {
        let (queue, series) = (RefCell::default(), Cell::default());
        let unicast = gateways.map(|gateways| RefCell::new(UnicastAnnouncer::new(gateways)));
        Self { table, interfaces, route, frames, queue, series, unicast, advertisements, wake }
    }

    /// Starts a new series for an address, and sends at once what may be sent.
    pub fn announce(&self, address: IpAddr) {
        self.begin(address, Round::first);
    }

    /// Starts a new series for an address whose interface was cut off: another host may use it by now. An IPv4 address is
    /// probed for first, so that such a host is heard, which is a conflict. See RFC 5227 section 2.1.
    pub fn announce_after_probe(&self, address: IpAddr) {
        self.begin(address, if address.is_ipv4() { Round::probe } else { Round::first });
    }

    fn begin(&self, address: IpAddr, round: fn(IpAddr, Holder, u64, Instant) -> Round) {
        let series = self.next_series();
        let holder = match self.table.borrow_mut().get_mut(address) {
            Some(lease) => {
                lease.announcement_series = series;
                lease.holder
            }
            None => return,
        };
        self.queue.borrow_mut().push(round(address, holder, series, Instant::now()));
        self.send_due();
        self.wake.notify_one();
    }

    /// Continues the announcements of the predecessor.
    pub fn continue_announcing(&self, address: IpAddr) {
        let series = self.next_series();
        if let Some(lease) = self.table.borrow_mut().get_mut(address) {
            lease.announcement_series = series;
            let round = Round::continued(address, lease.holder, series, Instant::now());
            self.queue.borrow_mut().push(round);
        }
    }

    fn next_series(&self) -> u64 {
        let series = self.series.get() + 1;
        self.series.set(series);
        series
    }

    /// Sends what is due and within the limit. Returns when to call it again.
    pub fn send_due(&self) -> Option<Instant> {
        let now = Instant::now();
        loop {
            let round = match self.queue.borrow_mut().pop_due(now) {
                Next::Empty => return None,
                Next::At(at) => return Some(at),
                Next::Due(round) => round,
            };
            let Some((index, frames)) = self.frames_of(&round) else { continue };
            if !frames.is_empty() && !self.frames.may_send(index, frames.len()) {
                self.queue.borrow_mut().put_back(round);
                return Some(now + RETRY);
            }
            for frame in &frames {
                self.frames.send(index, frame);
            }
            let next = match &self.unicast {
                _ if round.is_probe => round.after_probe(now),
                None => round.next(),
                Some(unicast) => unicast.borrow_mut().next_round(&round, now),
            };
            self.queue.borrow_mut().push(next);
        }
    }

    /// The frames of a round, and the interface that sends them; no frames while it has no carrier. `None` ends the
    /// series.
    fn frames_of(&self, round: &Round) -> Option<(u32, Vec<Vec<u8>>)> {
        let table = self.table.borrow();
        let lease = table.get(round.address).filter(|lease| lease.announcement_series == round.series)?;
        if lease.state != LeaseState::Held || lease.is_expired(BootTime::now()) {
            return None;
        }
        let index = lease.placement.index;
        let interface = self.interfaces.get(index).filter(|interface| interface.carrier);
        let mac = interface.and_then(|interface| interface.mac);
        let frames = mac.map(|mac| match (&self.unicast, round.address) {
            (_, IpAddr::V4(address)) if round.is_probe => vec![frame::probe(mac, address)],
            (None, _) => frame::announcement(mac, round.address),
            (Some(unicast), _) => unicast.borrow_mut().frames(&self.route, round, index, mac),
        });
        Some((index, frames.unwrap_or_default()))
    }

    /// Records that a neighbour answered an announcement of an address, so that it knows the address.
    pub fn acknowledge(&self, address: IpAddr, neighbour: IpAddr) {
        if let Some(unicast) = &self.unicast {
            unicast.borrow_mut().acknowledge(address, neighbour);
        }
    }

    /// Duplicates the socket of [`Announcer::receive_advertisement`], to wait on it.
    ///
    /// # Errors
    /// EMFILE.
    pub fn advertisements(&self) -> io::Result<Option<UnixDatagram>> {
        self.advertisements.as_ref().map(PacketSocket::try_clone).transpose()
    }

    /// Receives one neighbour advertisement.
    ///
    /// # Errors
    /// `WouldBlock` when none is queued.
    pub fn receive_advertisement(&self) -> io::Result<()> {
        let received = self.advertisements.as_ref().ok_or(io::ErrorKind::WouldBlock)?.receive()?;
        if let Some((address, neighbour)) = frame::parse_advertisement(received.bytes()) {
            self.acknowledge(address.into(), neighbour.into());
        }
        Ok(())
    }
}
