//! Addresses: what the broker puts on an interface for a peer, for as long as its lease lasts.
//!
//! The kernel ends a lease by itself: every address has a lifetime there, so that it goes though nobody of us lives.
//! Each mechanism is a file; [`Addresses`] is what they do together, one thread's. Nothing here asks policy.

mod add;
mod announce;
mod counts;
mod crowd;
mod fault;
pub mod fence;
pub mod frame;
mod handed;
mod keep;
pub mod lease;
mod left;
mod move_to;
mod neighbours;
mod news;
mod notice;
mod probe;
mod remove;
mod renew;
mod settle;
mod start;
mod together;
mod watch;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::rc::{Rc, Weak};
use std::time::Duration;

use portreeve_protocol::{Event, EventCode, Fault, Text};
use tokio::sync::Notify;

pub use crate::sys::BootTime;
pub use add::{Asked, How};
pub use handed::{MOST, REMEMBERED};
pub use keep::keep;

use crate::events::{Concern, Events};
use crate::sys::packet::Packet;
use crate::sys::{Interface, Netlink};
use announce::{Allowance, Queue};
use counts::Counts;
use fence::Fence;
use lease::{Lease, Table};
use neighbours::Neighbours;
use probe::Heard;

/// Who has listeners at addresses.
pub trait Listeners {
    /// Starts what listens at an address that has just come, before its neighbours are told.
    ///
    /// # Errors
    /// What could not start; the address then goes again, with whatever did.
    fn start(&self, address: IpAddr) -> Result<(), Fault>;

    /// Stops everything that listens at addresses that are about to go.
    fn stop(&self, addresses: &[IpAddr]);
}

/// What the configuration says of addresses.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Seconds that an address stays without renewal where the peer does not say.
    pub lease: u32,
    /// How often a minute an address that somebody took away is put back.
    pub put_back: u32,
    /// How often all of them are compared with what the kernel has.
    pub check: Duration,
    /// Addresses are announced to all hosts by broadcast; otherwise to those that are known, one by one.
    pub all_hosts: bool,
}

/// The broker's addresses, and the sockets by which they are kept. No borrow is held across an await.
pub struct Addresses {
    settings: Cell<Settings>,
    events: Rc<Events>,
    route: Netlink,
    diag: Netlink,
    /// Absent where the kernel has no nf_tables.
    fence: Option<Fence>,
    /// Absent where the broker does not keep CAP_NET_RAW.
    packet: Option<Packet>,
    /// Hears advertisements of IPv6, where hosts are told one by one.
    advertisements: Option<Packet>,
    /// What the kernel tells of interfaces and addresses.
    news: UnixDatagram,
    /// Room for one datagram of it.
    inbox: RefCell<Box<[u8]>>,
    table: RefCell<Table>,
    /// Every interface, as it was last told of.
    links: RefCell<HashMap<u32, Interface>>,
    queue: RefCell<Queue>,
    allowance: RefCell<HashMap<u32, Allowance>>,
    heard: RefCell<Heard>,
    neighbours: RefCell<Neighbours>,
    /// The interfaces of which it was told that they have too many.
    crowded: RefCell<HashSet<u32>>,
    series: Cell<u64>,
    /// Whether an address may be missing: most news are of none.
    any_missing: Cell<bool>,
    /// When to compare with the kernel early: it told of something removed that it still seemed to have.
    doubt: Cell<Option<tokio::time::Instant>>,
    /// What was removed and is on this host still, elsewhere. It passes the fence again when it is gone there.
    silent: RefCell<HashSet<IpAddr>>,
    /// Unset until the broker serves.
    listeners: OnceCell<Weak<dyn Listeners>>,
    counts: Counts,
    /// Something is due earlier than before.
    changed: Notify,
}

impl Addresses {
    /// The interface of an address as it was last told of.
    fn link(&self, index: u32) -> Option<Interface> {
        self.links.borrow().get(&index).cloned()
    }

    fn listeners(&self) -> Option<Rc<dyn Listeners>> {
        self.listeners.get().and_then(Weak::upgrade)
    }

    /// Tells what happened to an address, to whom it concerns.
    fn tell(&self, lease: &Lease, code: EventCode, detail: &str) {
        let event = Event {
            code,
            address: Some(lease.place.address),
            interface: lease.interface.clone(),
            index: lease.place.index,
            epoch: lease.epoch,
            detail: Text::clipped(detail),
            ..Event::default()
        };
        self.events.tell(Concern::Holder(lease.holder), event);
    }

    /// Seconds that an address stays without renewal where the peer does not say.
    pub fn lease(&self) -> u32 {
        self.settings.get().lease
    }

    /// Whether rules of the packet filter end each lease to the millisecond.
    pub fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    /// How long an address stays by what a peer asks for: the configuration's time where it does not say, for ever for 0.
    pub fn lifetime(&self, asked: Option<u32>) -> crate::sys::rtnl::Lifetime {
        Some(asked.unwrap_or(self.settings.get().lease)).filter(|seconds| *seconds > 0)
    }

    /// The addresses that came with one and go with it.
    pub fn followers(&self, address: IpAddr) -> Vec<IpAddr> {
        self.table.borrow().followers.of(address).to_vec()
    }

    /// The address that one came with and goes with, while that is here.
    pub fn leader(&self, address: IpAddr) -> Option<IpAddr> {
        let table = self.table.borrow();
        table.get(address)?.follows.filter(|leader| table.get(*leader).is_some())
    }

    /// The socket to ask the kernel of interfaces by.
    pub fn route(&self) -> &Netlink {
        &self.route
    }

    /// Changes the settings; leases that have begun run as they were given, and all hosts are told or not as from the
    /// start, when the sockets for it were opened.
    pub fn set_settings(&self, settings: Settings) {
        self.settings.set(Settings { all_hosts: self.settings.get().all_hosts, ..settings });
    }

    /// Looks at the leases after an address, in their order.
    pub fn leases_after<T>(
        &self,
        after: Option<IpAddr>,
        look: impl FnOnce(&mut dyn Iterator<Item = &Lease>) -> T,
    ) -> T {
        look(&mut self.table.borrow().after(after))
    }
}
