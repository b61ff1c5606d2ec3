//! Compares the lease table with the kernel, and restores addresses that another program removed.
//!
//! Promises: restores a leased address while its lease lasts, with a lifetime that does not exceed the lease, at most
//! `restore_limit` times a minute unless it went with its interface; announces it again then, when its interface changes its
//! MAC address, and, after a probe, when it regains a carrier. A full comparison makes up for lost notifications.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use portreeve_protocol::{EventCode, Text};
use tokio::sync::Notify;

use super::announcer::Announcer;
use super::counters::AddressCounters;
use super::event_publisher::EventPublisher;
use super::host_addresses::HostAddresses;
use super::interface_cache::InterfaceCache;
use super::lease::{Lease, LeaseState};
use super::lease_table::LeaseTable;
use super::vrf::VrfListeners;
use crate::holder::Holder;
use crate::sys::rtnl::{self, Destination, Placement};
use crate::sys::rtnl_monitor::{Notification, RtnlMonitor};
use crate::sys::{BootTime, Interface};

/// The time until another comparison after the kernel reported a removal that is not visible yet.
const RECHECK: Duration = Duration::from_millis(100);

/// What the reconciler uses of the other parts.
pub(super) struct Parts {
    pub table: Rc<RefCell<LeaseTable>>,
    pub interfaces: Rc<InterfaceCache>,
    pub host: Rc<HostAddresses>,
    pub vrf_listeners: Rc<VrfListeners>,
    pub announcer: Rc<Announcer>,
    pub events: Rc<EventPublisher>,
    pub counters: Rc<AddressCounters>,
    /// Wakes the lease loop: a comparison or the end of a lease is due earlier.
    pub wake: Rc<Notify>,
}

/// Compares the lease table with the kernel.
pub(super) struct Reconciler {
    parts: Parts,
    monitor: RtnlMonitor,
    /// How often an address is restored in a minute.
    restore_limit: Cell<u32>,
    /// Whether an address may be missing. Most notifications concern no missing address.
    any_missing: Cell<bool>,
    /// When to compare before the regular time.
    recheck_at: Cell<Option<tokio::time::Instant>>,
}

impl Reconciler {
    pub fn new(monitor: RtnlMonitor, restore_limit: u32, parts: Parts) -> Self {
        let (any_missing, recheck_at) = (Cell::new(false), Cell::new(None));
        Self { parts, monitor, restore_limit: restore_limit.into(), any_missing, recheck_at }
    }

    /// Changes how often an address is restored in a minute.
    pub fn set_restore_limit(&self, limit: u32) {
        self.restore_limit.set(limit);
    }

    /// Duplicates the socket of [`Reconciler::receive`], to wait on it.
    ///
    /// # Errors
    /// EMFILE.
    pub fn socket(&self) -> io::Result<UnixDatagram> {
        self.monitor.try_clone()
    }

    /// When to compare before the regular time, if it is needed.
    pub fn recheck_at(&self) -> Option<tokio::time::Instant> {
        self.recheck_at.get()
    }

    /// Handles all queued notifications, and restores the addresses that they report missing.
    pub fn receive_all(&self) {
        while self.receive().is_ok() {}
        self.restore_missing();
    }

    /// Handles one datagram of notifications.
    ///
    /// # Errors
    /// `WouldBlock` when none is queued.
    pub fn receive(&self) -> io::Result<()> {
        match self.monitor.receive(|notification| self.handle(notification)) {
            Err(Errno::ENOBUFS) => {
                tracing::warn!("lost notifications from the kernel; comparing every address and interface");
                self.compare();
                Ok(())
            }
            result => Ok(result?),
        }
    }

    fn handle(&self, notification: Notification) {
        match notification {
            Notification::Interface(interface) => self.interface_changed(interface),
            Notification::InterfaceDeleted(index) => self.interface_deleted(index),
            Notification::AddressPresent(placement) => self.mark_present(&placement),
            Notification::AddressRemoved(placement) => self.address_removed(&placement),
        }
    }

    /// Handles an interface as the kernel has just reported it.
    pub fn interface_changed(&self, interface: Interface) {
        let index = interface.index;
        let before = self.parts.interfaces.insert(interface.clone());
        self.publish_change(&interface, before.as_ref());
        let names = |interface: &Interface| (interface.name.clone(), interface.altnames.clone());
        if before.as_ref().is_none_or(|before| names(before) != names(&interface)) {
            self.follow_new_index(&interface);
        }
        if !interface.up {
            let mut table = self.parts.table.borrow_mut();
            let missing = table.missing().filter(|lease| lease.placement.index == index);
            missing.for_each(|lease| lease.removed_with_link = true);
        }
        let Some(before) = before else { return };
        if before.vrf != interface.vrf {
            self.vrf_changed(&interface);
        }
        let was_cut_off = interface.carrier && !before.carrier;
        if was_cut_off || interface.mac != before.mac {
            let announced: Vec<IpAddr> = {
                let table = self.parts.table.borrow();
                let held = table.iter().filter(|lease| lease.placement.index == index && lease.is_held());
                held.filter(|lease| lease.is_announced()).map(|lease| lease.placement.address).collect()
            };
            announced.into_iter().for_each(|address| match was_cut_off {
                true => self.parts.announcer.announce_after_probe(address),
                false => self.parts.announcer.announce(address),
            });
        }
    }

    /// An interface was added to a VRF or released from one, with its addresses.
    fn vrf_changed(&self, interface: &Interface) {
        if self.parts.table.borrow_mut().on_interface(interface.index).next().is_some() {
            tracing::warn!(
                interface = interface.name,
                vrf = interface.vrf.map(|vrf| vrf.index),
                "an interface with leased addresses was added to a VRF or released from one: connections do not continue"
            );
        }
        // The kernel takes the interface down and up again, and removes its IPv6 addresses.
        self.compare_addresses();
        let mut table = self.parts.table.borrow_mut();
        let missing = table.missing().filter(|lease| lease.placement.index == interface.index);
        missing.for_each(|lease| lease.removed_with_link = true);
        drop(table);
        self.parts.vrf_listeners.follow(interface.index);
    }

    /// An interface that was deleted and created again has a new index: its missing addresses belong there now.
    fn follow_new_index(&self, interface: &Interface) {
        let mut has_addresses = false;
        for lease in self.parts.table.borrow_mut().missing() {
            if interface.has_name(&lease.interface) && !self.parts.interfaces.contains(lease.placement.index)
            {
                lease.placement.index = interface.index;
                has_addresses = true;
            }
        }
        if has_addresses {
            self.any_missing.set(true);
            self.parts.vrf_listeners.follow(interface.index);
        }
    }

    fn interface_deleted(&self, index: u32) {
        let Some(interface) = self.parts.interfaces.remove(index) else { return };
        self.publish(EventCode::LinkGone, &interface, "");
        self.mark_missing_where(|placement| placement.index == index);
    }

    /// Publishes the new name and the carrier of an interface, if they changed.
    fn publish_change(&self, interface: &Interface, before: Option<&Interface>) {
        if let Some(before) = before.filter(|before| before.name != interface.name) {
            let mut table = self.parts.table.borrow_mut();
            table
                .on_interface(interface.index)
                .for_each(|lease| lease.interface = Text::truncated(&interface.name));
            drop(table);
            self.publish(EventCode::LinkRenamed, interface, &before.name);
        }
        if interface.carrier != before.is_some_and(|before| before.carrier) {
            let code = if interface.carrier { EventCode::LinkUp } else { EventCode::LinkDown };
            self.publish(code, interface, "");
        }
    }

    fn publish(&self, code: EventCode, interface: &Interface, detail: &str) {
        let mut holders: Vec<Holder> = Vec::new();
        for lease in self.parts.table.borrow_mut().on_interface(interface.index) {
            if !holders.contains(&lease.holder) {
                holders.push(lease.holder);
            }
        }
        self.parts.events.interface(interface, holders, code, detail);
    }

    /// Records that a missing address is on its interface again.
    fn mark_present(&self, placement: &Placement) {
        if let Some(lease) = self.parts.table.borrow_mut().get_mut(placement.address)
            && lease.placement == *placement
            && lease.state == LeaseState::Missing
        {
            lease.state = LeaseState::Held;
            self.parts.events.address(lease, EventCode::AddressRestored, "");
        }
    }

    /// Handles a removal that the kernel reported. The broker may have added the address again since.
    fn address_removed(&self, placement: &Placement) {
        let is_held = |lease: &&Lease| lease.placement == *placement && lease.is_held();
        let is_held = self.parts.table.borrow().get(placement.address).filter(is_held).is_some();
        if is_held && !self.is_present(placement) {
            let mut table = self.parts.table.borrow_mut();
            table.get_mut(placement.address).into_iter().for_each(|lease| self.mark_missing(lease));
        } else if is_held || self.parts.host.is_quarantined(placement.address) {
            // The kernel reports the removal of an IPv4 address before it removes the route, and the host may have the
            // address elsewhere.
            let recheck_at = self.recheck_at.get().unwrap_or_else(|| tokio::time::Instant::now() + RECHECK);
            self.recheck_at.set(Some(recheck_at));
            self.parts.wake.notify_one();
        }
    }

    /// Whether an IPv6 address is on its interface now. For IPv4, whether the address is on any interface of its VRF: the kernel has
    /// no query for a single IPv4 address.
    fn is_present(&self, placement: &Placement) -> bool {
        let host = &self.parts.host;
        match placement.address {
            IpAddr::V4(_) => {
                let to = host.destinations(&[host.lookup(placement)]).remove(&placement.address);
                matches!(to, Some(Ok(Destination::Local)))
            }
            IpAddr::V6(_) => {
                rtnl::get_ipv6(host.route(), placement).is_ok_and(|address| address.placement == *placement)
            }
        }
    }

    /// Marks the held addresses with a matching placement as missing.
    pub fn mark_missing_where(&self, matches: impl Fn(&Placement) -> bool) {
        let mut table = self.parts.table.borrow_mut();
        let missing: Vec<IpAddr> = table
            .iter()
            .filter(|lease| lease.is_held() && matches(&lease.placement))
            .map(|lease| lease.placement.address)
            .collect();
        for address in missing {
            table.get_mut(address).into_iter().for_each(|lease| self.mark_missing(lease));
        }
    }

    /// Marks an address missing. In the last second of its lease the lease ends instead: the kernel counts whole seconds,
    /// and may remove an address early by what was rounded down.
    fn mark_missing(&self, lease: &mut Lease) {
        let now = BootTime::now();
        if lease.is_ending(now) {
            lease.deadline = Some(now);
            return self.parts.wake.notify_one();
        }
        lease.state = LeaseState::Missing;
        let interface = self.parts.interfaces.get(lease.placement.index);
        lease.removed_with_link = interface.is_none_or(|interface| !interface.up);
        self.any_missing.set(true);
        self.parts.events.address(lease, EventCode::AddressLost, "");
    }

    /// Compares every lease with the kernel, restores what is missing, and clears the early comparison.
    pub fn run(&self) {
        self.recheck_at.set(None);
        self.compare();
        self.restore_missing();
    }

    /// Compares the imported leases with the kernel for the first time, and restores what is missing.
    pub fn run_after_import(&self) {
        self.any_missing.set(true);
        self.compare();
        self.restore_missing();
        self.parts.vrf_listeners.follow_all();
    }

    fn compare(&self) {
        match Interface::list(self.parts.host.route()) {
            Ok(interfaces) => {
                let present: HashSet<u32> = interfaces.iter().map(|interface| interface.index).collect();
                let known = self.parts.interfaces.indexes();
                known
                    .iter()
                    .filter(|index| !present.contains(index))
                    .for_each(|index| self.interface_deleted(*index));
                interfaces.into_iter().for_each(|interface| self.interface_changed(interface));
            }
            Err(errno) => tracing::error!(error = %errno, "cannot list the interfaces of this host"),
        }
        self.compare_addresses();
        self.check_quarantine();
    }

    fn compare_addresses(&self) {
        match rtnl::list(self.parts.host.route()) {
            Ok(present) => {
                let present: HashSet<Placement> =
                    present.into_iter().map(|address| address.placement).collect();
                present.iter().for_each(|placement| self.mark_present(placement));
                self.mark_missing_where(|placement| !present.contains(placement));
            }
            Err(errno) => tracing::error!(error = %errno, "cannot list the addresses of this host"),
        }
    }

    /// Ends the quarantine of removed addresses that the host no longer has elsewhere.
    pub fn check_quarantine(&self) {
        self.parts.host.check_quarantine(|address| self.parts.table.borrow().get(address).is_some());
    }

    /// Adds missing addresses again if their interface is up.
    pub fn restore_missing(&self) {
        if !self.any_missing.replace(false) {
            return;
        }
        let (now, instant) = (BootTime::now(), Instant::now());
        let (mut restored, mut causes) = (Vec::new(), Vec::new());
        for lease in self.parts.table.borrow_mut().missing() {
            // Try again at every notification until it is present.
            self.any_missing.set(true);
            let placement = lease.placement;
            let up = Interface::by_index(self.parts.host.route(), placement.index)
                .is_ok_and(|interface| interface.up);
            let cause = match lease.removed_with_link {
                true => "its interface went down, was deleted or changed its VRF",
                false => "another program removed it",
            };
            if up && !lease.is_ending(now) && lease.try_restore(instant, self.restore_limit.get()) {
                restored.push((placement, lease.end_in_kernel()));
                causes.push(cause);
            }
        }
        if restored.is_empty() {
            return;
        }
        let outcomes = self.parts.host.add_undetected(&restored);
        for (((placement, _), cause), outcome) in restored.into_iter().zip(causes).zip(outcomes) {
            let (address, index) = (placement.address, placement.index);
            match outcome {
                Ok(()) | Err(Errno::EEXIST) => {
                    self.mark_present(&placement);
                    self.parts.counters.restored.up();
                    tracing::warn!(%address, index, reason = cause, "restored an address that was missing");
                    if self.parts.table.borrow().get(address).is_some_and(Lease::is_announced) {
                        self.parts.announcer.announce(address);
                    }
                }
                Err(errno) => {
                    tracing::warn!(%address, index, reason = cause, error = %errno, "cannot restore an address that is missing");
                }
            }
        }
    }
}
