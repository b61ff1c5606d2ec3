//! Removing: listeners stop, connections are ended while the address can still tell their peers, then it falls silent,
//! then it goes, then it is looked for.
//!
//! Promises: only what is in the broker's table is removed, at its own interface and prefix; what cannot be seen to be
//! gone stays silent.

use std::net::IpAddr;

use nix::errno::Errno;
use portreeve_protocol::address::Removed;
use portreeve_protocol::{EventCode, Fault};

use super::{Addresses, fault};
use crate::holder::Holder;
use crate::sys::boot_time::BootTime;
use crate::sys::rtnl::{self, Place};
use crate::sys::sock_diag;

impl Addresses {
    /// Whether somebody may remove an address.
    ///
    /// # Errors
    /// As the table has them; one whose lease has ended counts as gone.
    pub fn may_remove(&self, address: IpAddr, holder: Option<Holder>, epoch: u64) -> Result<(), Fault> {
        self.table.borrow_mut().of(address, holder, epoch, BootTime::now()).map(drop)
    }

    /// Removes addresses that are in the table; `ran_out` where nobody asked for it.
    pub fn remove(&self, addresses: &[IpAddr], ran_out: bool) -> Vec<Result<Removed, Fault>> {
        let places: Vec<Place> = {
            let table = self.table.borrow();
            addresses.iter().filter_map(|address| Some(table.get(*address)?.place)).collect()
        };
        if let Some(listeners) = self.listeners().filter(|_| !places.is_empty()) {
            listeners.stop(addresses);
        }
        let outcomes = self.clear(&places);
        let mut table = self.table.borrow_mut();
        for (place, outcome) in places.iter().zip(&outcomes) {
            // What could not be removed is tried again, by whoever asks or by the clock.
            if (outcome.is_ok() || ran_out)
                && let Some(lease) = table.remove(place.address, ran_out)
            {
                let code = if ran_out { EventCode::AddressExpired } else { EventCode::AddressRemoved };
                let stays = outcome.as_ref().err().map_or("", |fault| &*fault.message);
                self.tell(&lease, code, stays);
            }
        }
        outcomes
    }

    /// Clears addresses off the host, whether or not they are in the table.
    pub(super) fn clear(&self, places: &[Place]) -> Vec<Result<Removed, Fault>> {
        let addresses: Vec<IpAddr> = places.iter().map(|place| place.address).collect();
        if addresses.is_empty() {
            return Vec::new();
        }
        if let Err(errno) = sock_diag::end(&self.diag, &addresses) {
            tracing::warn!(?addresses, %errno, "connections of addresses could not be reset before they go");
        }
        if let Some(fence) = &self.fence
            && let Err(error) = fence.close(&addresses)
        {
            tracing::error!(?addresses, %error, "the fence of addresses could not be closed before they go");
        }
        let results = rtnl::remove(&self.route, places);
        let results = results.unwrap_or_else(|error| vec![Err(fault::errno(&error)); places.len()]);
        let mut local = self.are_local(&addresses);
        let outcomes = places.iter().zip(results).map(|(place, result)| match result {
            // What is gone is gone, whoever did it.
            Ok(()) | Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => {
                let verified = matches!(local.remove(&place.address), Some(Ok(false)));
                Ok(Removed { address: place.address, verified })
            }
            Err(errno) => Err(fault::of_address("RTM_DELADDR", place.address, errno)),
        });
        let outcomes: Vec<Result<Removed, Fault>> = outcomes.collect();
        self.let_go(outcomes.iter().flatten());
        outcomes
    }

    /// Lets packets of addresses that are surely gone pass again.
    fn let_go<'r>(&self, removed: impl Iterator<Item = &'r Removed>) {
        let mut gone = Vec::new();
        for Removed { address, verified } in removed {
            match verified {
                true => gone.push(*address),
                false => {
                    self.silent.borrow_mut().insert(*address);
                    tracing::warn!(%address, "an address that was removed is on this host still, elsewhere")
                }
            }
        }
        if let Some(fence) = &self.fence
            && let Err(error) = fence.forget(&gone)
        {
            tracing::error!(?gone, %error, "the fence of addresses that are gone stays");
        }
    }

    /// Looks again at what was removed and was elsewhere on this host; what is gone there passes the fence again.
    pub(super) fn look_at_silent(&self) {
        let silent: Vec<IpAddr> = {
            let (table, silent) = (self.table.borrow(), self.silent.borrow());
            silent.iter().filter(|one| table.get(**one).is_none()).copied().collect()
        };
        if silent.is_empty() {
            return;
        }
        let local = self.are_local(&silent);
        let gone = silent.into_iter().filter(|address| matches!(local.get(address), Some(Ok(false))));
        let gone: Vec<Removed> = gone.map(|address| Removed { address, verified: true }).collect();
        self.silent.borrow_mut().retain(|address| gone.iter().all(|one| one.address != *address));
        self.let_go(gone.iter());
    }
}
