//! Exports leases and epochs to the successor, and imports those of the predecessor.
//!
//! Promises: changes no interface and no fence. This broker no longer removes, renews or announces an exported address; an
//! imported lease keeps the deadline that the predecessor gave it, on the same clock.

use std::collections::VecDeque;
use std::net::IpAddr;

use portreeve_protocol::takeover::{ExportedEpoch, ExportedLease};

use super::Addresses;
use super::lease::{Lease, LeaseState};
use super::lease_table::LeaseTable;
use super::past_epochs::PastLease;
use crate::holder::Holder;
use crate::sys::rtnl::Placement;
use crate::sys::{BootTime, Interface};

impl Addresses {
    /// Whether an address is being added.
    pub fn is_adding(&self) -> bool {
        self.table.borrow().iter().any(Lease::is_pending)
    }

    /// Exports at most `count` leases, of the addresses that follow `after` in the order of addresses.
    pub fn export_leases(&self, after: Option<IpAddr>, count: usize) -> Vec<ExportedLease> {
        self.table.borrow().after(after).take(count).map(export).collect()
    }

    /// Exports the epochs of removed addresses, those first that would be forgotten first.
    pub fn export_epochs(&self) -> Vec<ExportedEpoch> {
        let export = |(address, holder, past): (IpAddr, Holder, PastLease)| ExportedEpoch {
            address,
            user: holder.user(),
            epoch: past.epoch,
            expired: past.expired,
        };
        self.table.borrow().past().into_iter().map(export).collect()
    }

    /// Imports a lease of the predecessor.
    pub fn import_lease(&self, lease: ExportedLease) {
        let ExportedLease { address, index, prefix, .. } = lease;
        let interface = Interface::by_index(self.host.route(), index).ok();
        let is_held = lease.present && interface.is_some();
        interface.into_iter().for_each(|interface| drop(self.interfaces.insert(interface)));
        self.table.borrow_mut().insert(Lease {
            placement: Placement { address, index, prefix },
            interface: lease.interface,
            holder: Holder::of_user(lease.user),
            lifetime: lease.lease_seconds,
            deadline: lease.deadline_ns.map(BootTime::from_nanos),
            renewed_with_all: lease.renewed_with_all,
            // No earlier than this.
            kernel_deadline: lease.deadline_ns.map(BootTime::from_nanos),
            expiry_notified: false,
            epoch: lease.epoch,
            follows: lease.follows,
            state: if is_held { LeaseState::Held } else { LeaseState::Missing },
            announcement_series: 0,
            restored: VecDeque::new(),
            removed_with_link: false,
        });
        if let Some(fence) = self.host.fence().filter(|_| lease.renewed_with_all) {
            fence.import_holder(Holder::of_user(lease.user));
        }
        if lease.announced {
            self.announcer.continue_announcing(address);
        }
    }

    /// Imports the epoch of an address that the predecessor removed.
    pub fn import_epoch(&self, past: ExportedEpoch) {
        let ExportedEpoch { address, user, epoch, expired } = past;
        self.table.borrow_mut().insert_past(address, Holder::of_user(user), PastLease { epoch, expired });
    }

    /// Drops every lease: the successor manages them now, with the addresses and the fence.
    pub fn drop_exported(&self) {
        self.host.turn_fence_off();
        *self.table.borrow_mut() = LeaseTable::default();
    }

    /// Begins to manage the imported leases: compares them with the kernel, and restores what is missing.
    pub fn commit_import(&self) {
        self.reconciler.run_after_import();
        self.repair_fence();
        self.wake.notify_one();
    }
}

fn export(lease: &Lease) -> ExportedLease {
    ExportedLease {
        address: lease.placement.address,
        index: lease.placement.index,
        interface: lease.interface.clone(),
        prefix: lease.placement.prefix,
        user: lease.holder.user(),
        lease_seconds: lease.lifetime,
        deadline_ns: lease.deadline.map(BootTime::as_nanos),
        epoch: lease.epoch,
        follows: lease.follows,
        present: lease.is_held(),
        announced: lease.is_announced(),
        renewed_with_all: lease.renewed_with_all,
    }
}
