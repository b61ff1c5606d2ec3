//! Leased addresses: the broker adds them to interfaces for peers, and removes them when their lease ends.
//!
//! The kernel enforces a lease too: it removes an address at the end of its lifetime even if no process of Portreeve runs.
//! Each mechanism has its own file. [`Addresses`] composes them, in one thread; its methods are the operations. No borrow
//! is held across an await. This module does not consult policy: its callers do.

#![deny(unsafe_code)]

mod add;
mod add_batch;
mod announcement_queue;
mod announcer;
mod clean_slate;
mod counters;
mod dad;
mod event_publisher;
mod export;
mod fault;
pub mod fence;
mod fence_deadlines;
mod fence_repair;
mod followers;
pub mod frame;
mod frame_socket;
mod gateways;
mod host_addresses;
mod interface_cache;
mod kernel_lifetime;
pub mod lease;
mod lease_end;
mod lease_loop;
pub mod lease_table;
mod move_address;
mod multicast_limit;
mod open;
mod past_epochs;
mod prober;
mod reconcile;
mod removal_notice;
mod remove;
mod renew;
mod renew_all;
mod reservation;
mod shares;
mod stray;
mod unicast_announcer;
mod vrf;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use portreeve_protocol::Fault;
use portreeve_protocol::address::Bounds;
use portreeve_protocol::metrics::AddressCounts;
use tokio::sync::Notify;

pub use add::{AddParams, AddSpec};
pub use dad::TIMEOUT as DETECTION_TIMEOUT;
pub use lease_end::LeaseEnd;
pub use lease_loop::spawn;
pub use past_epochs::MAX_PAST_EPOCHS;
pub use reservation::Reservation;
pub use shares::{Limit, MAX_LEASES};

use crate::holder::Holder;
use crate::sys::Netlink;
use crate::sys::rtnl::SourceUse;
use announcer::Announcer;
use counters::AddressCounters;
use event_publisher::EventPublisher;
use gateways::Gateways;
use host_addresses::HostAddresses;
use interface_cache::InterfaceCache;
use kernel_lifetime::KernelLifetimes;
use lease::Lease;
use lease_table::LeaseTable;
use multicast_limit::MulticastLimit;
use prober::Prober;
use reconcile::Reconciler;
use vrf::VrfListeners;

/// Starts and stops the floating listeners of an address.
pub trait FloatingListeners {
    /// Starts the listeners of an address that was just added, before it is announced.
    ///
    /// # Errors
    /// A listener could not start. The caller then stops the others and removes the address.
    fn start(&self, address: IpAddr) -> Result<(), Fault>;

    /// Stops every listener on addresses that are about to be removed.
    fn stop(&self, addresses: &[IpAddr]);

    /// Binds every listener on addresses whose interface is now in this VRF, or in none.
    fn change_vrf(&self, addresses: &HashSet<IpAddr>, vrf: Option<&str>);
}

/// The configuration of addresses.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The lifetime of a lease in seconds, if the request has none.
    pub default_lease: u32,
    /// How many times per minute the broker restores an address that another program removed.
    pub restore_limit: u32,
    /// The time between two full comparisons with the kernel.
    pub reconcile_interval: Duration,
    /// Whether announcements are broadcasts; otherwise they are sent to each known neighbour.
    pub broadcast: bool,
    /// Whether the kernel may choose the addresses as the source of the host's own connections.
    pub source: SourceUse,
}

/// The leased addresses of the broker.
pub struct Addresses {
    default_lease: Cell<u32>,
    reconcile_interval: Cell<Duration>,
    table: Rc<RefCell<LeaseTable>>,
    interfaces: Rc<InterfaceCache>,
    host: Rc<HostAddresses>,
    announcer: Rc<Announcer>,
    prober: Prober,
    reconciler: Reconciler,
    multicast_limit: MulticastLimit,
    kernel_lifetimes: KernelLifetimes,
    vrf_listeners: Rc<VrfListeners>,
    events: Rc<EventPublisher>,
    counters: Rc<AddressCounters>,
    /// Wakes the lease loop: something is due earlier.
    wake: Rc<Notify>,
    /// Absent if announcements are broadcasts.
    gateways: Option<Rc<Gateways>>,
    /// Absent if another user has its name.
    reservation: Option<Reservation>,
}

impl Addresses {
    fn listeners(&self) -> Option<Rc<dyn FloatingListeners>> {
        self.vrf_listeners.listeners()
    }

    /// The lifetime of a lease in seconds, if the request has none.
    pub fn default_lease(&self) -> u32 {
        self.default_lease.get()
    }

    /// Converts a requested length of a lease: the default for `None`, permanent for 0.
    pub fn lease_of(&self, requested: Option<u32>) -> LeaseEnd {
        LeaseEnd::After(Some(requested.unwrap_or(self.default_lease.get())).filter(|seconds| *seconds > 0))
    }

    /// The right to manage the addresses of this network namespace; `None` if another user prevents that.
    pub fn reservation(&self) -> Option<&Reservation> {
        self.reservation.as_ref()
    }

    /// Whether the fence ends each lease to the millisecond.
    pub fn is_fenced(&self) -> bool {
        self.host.fence().is_some()
    }

    /// Whether the kernel says that the fence ends the leases of these addresses.
    pub fn are_fenced(&self, addresses: &[IpAddr]) -> bool {
        let Some(fence) = self.host.fence() else { return false };
        let table = self.table.borrow();
        let member = |address: &IpAddr| {
            let lease = table.get(*address).filter(|lease| lease.renewed_with_all);
            (*address, lease.map(|lease| lease.holder))
        };
        fence.is_open_for(&addresses.iter().map(member).collect::<Vec<_>>()) == Ok(true)
    }

    /// What ends leases if the broker does not, as the kernel reports.
    pub fn bounds(&self) -> Bounds {
        let fenced = self.host.fence().is_some_and(|fence| fence.has_rules() == Ok(true));
        Bounds { ipv4_fenced: fenced, ipv6_fenced: fenced }
    }

    /// The addresses that follow one of a holder: they are added and removed with it.
    pub fn followers_of(&self, address: IpAddr, holder: Holder) -> Vec<IpAddr> {
        let table = self.table.borrow();
        let is_held = table.get(address).is_some_and(|lease| lease.holder == holder);
        if is_held { table.followers_of(address) } else { Vec::new() }
    }

    /// The address that one follows, if its holder has that too.
    pub fn leader_of(&self, address: IpAddr) -> Option<IpAddr> {
        self.table.borrow().leader_of(address)
    }

    /// The socket for queries about interfaces and changes of them.
    pub fn route(&self) -> &Netlink {
        self.host.route()
    }

    /// Applies a new configuration. Leases keep their lifetime until they are renewed. Announcements stay broadcast or
    /// unicast: their sockets were opened at the start.
    pub fn apply_settings(&self, settings: Settings) {
        self.default_lease.set(settings.default_lease);
        self.reconcile_interval.set(settings.reconcile_interval);
        self.reconciler.set_restore_limit(settings.restore_limit);
        self.host.set_source_use(settings.source);
    }

    /// Counts for metrics.
    pub fn counts(&self) -> AddressCounts {
        self.counters.to_wire(&self.table.borrow())
    }

    /// The deadline of an address for the wire in nanoseconds; 0 if it has no lease.
    pub fn deadline_ns(&self, address: IpAddr) -> u64 {
        self.table.borrow().get(address).map_or(0, Lease::deadline_ns)
    }

    /// Passes the leases after an address to a function, in the order of their addresses.
    pub fn leases_after<T>(
        &self,
        after: Option<IpAddr>,
        view: impl FnOnce(&mut dyn Iterator<Item = &Lease>) -> T,
    ) -> T {
        view(&mut self.table.borrow().after(after))
    }
}
