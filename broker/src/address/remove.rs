//! Removes addresses: stops their listeners, resets their connections, closes the fence, removes them from their
//! interface, and verifies that the host no longer has them.
//!
//! Promises: removes only addresses of the lease table, at their own interface and prefix; an address whose removal
//! cannot be verified stays fenced.

use std::net::IpAddr;

use portreeve_protocol::address::Removal;
use portreeve_protocol::{EventCode, Fault};

use super::Addresses;
use crate::holder::Holder;
use crate::sys::BootTime;
use crate::sys::rtnl::Placement;

/// Why addresses are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RemovalCause {
    /// The holder, root or a change of policy requested it.
    Request,
    /// Their lease expired.
    Expired,
}

impl Addresses {
    /// Checks that a holder may remove an address; with `any_holder`, also if another holder has it.
    ///
    /// # Errors
    /// NotFound, Busy, or Expired, also for a lease that has expired but is not removed yet.
    pub fn check_removable(
        &self,
        address: IpAddr,
        holder: Holder,
        any_holder: bool,
        epoch: u64,
    ) -> Result<(), Fault> {
        self.table.borrow().check_removable(address, holder, any_holder, epoch, BootTime::now())
    }

    /// Remembers the epoch of a request that removes these addresses, for the holder that sent it. Their leases, if they
    /// are another's, do not get this epoch.
    pub fn remember_removals(&self, addresses: &[IpAddr], holder: Holder, epoch: u64) {
        let mut table = self.table.borrow_mut();
        addresses.iter().for_each(|address| table.remember_removal(*address, holder, epoch));
    }

    /// Removes those of the addresses that have a lease, and returns the outcome of each of these.
    pub fn remove(&self, addresses: &[IpAddr]) -> Vec<Result<Removal, Fault>> {
        self.remove_because(RemovalCause::Request, addresses)
    }

    pub(super) fn remove_because(
        &self,
        cause: RemovalCause,
        addresses: &[IpAddr],
    ) -> Vec<Result<Removal, Fault>> {
        let placements: Vec<Placement> = {
            let table = self.table.borrow();
            addresses.iter().filter_map(|address| Some(table.get(*address)?.placement)).collect()
        };
        if let Some(listeners) = self.listeners().filter(|_| !placements.is_empty()) {
            listeners.stop(addresses);
        }
        self.separate_from_holder(addresses);
        let outcomes = self.host.remove(&placements);
        let expired = cause == RemovalCause::Expired;
        let mut table = self.table.borrow_mut();
        for (placement, outcome) in placements.iter().zip(&outcomes) {
            // The lease of an address that cannot be removed stays, for another request or its expiry.
            if (outcome.is_ok() || expired)
                && let Some(lease) = table.remove(placement.address, expired)
            {
                let code = if expired { EventCode::AddressExpired } else { EventCode::AddressRemoved };
                let failure = outcome.as_ref().err().map_or("", |fault| &*fault.message);
                self.events.address(&lease, code, failure);
            }
        }
        outcomes
    }
}
