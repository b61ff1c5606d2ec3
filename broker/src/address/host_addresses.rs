//! Adds addresses to interfaces and removes them, each behind the fence.
//!
//! Promises: opens the fence for an address before the address is added; closes it, and resets the connections, before
//! the address is removed. A removed address that the host still has elsewhere stays fenced until it is removed there.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::Fault;
use portreeve_protocol::address::Removal;

use super::fault;
use super::fence::Fence;
use crate::sys::rtnl::{self, Destination, Lifetime, Outcomes, Placement, SourceUse};
use crate::sys::{Netlink, sock_diag};

/// Changes the addresses of the host.
pub(super) struct HostAddresses {
    route: Rc<Netlink>,
    diag: Netlink,
    source: Cell<SourceUse>,
    /// Absent if the kernel has no nf_tables, and after [`HostAddresses::turn_fence_off`].
    fence: RefCell<Option<Rc<Fence>>>,
    /// Removed addresses that the host still has on another interface or with another prefix. They stay fenced.
    quarantine: RefCell<HashSet<IpAddr>>,
}

impl HostAddresses {
    pub fn new(route: Rc<Netlink>, diag: Netlink, fence: Option<Fence>, source: SourceUse) -> Self {
        let fence = RefCell::new(fence.map(Rc::new));
        Self { route, diag, source: source.into(), fence, quarantine: RefCell::default() }
    }

    /// Changes whether the kernel may choose the addresses as a source, from their next renewal on.
    pub fn set_source_use(&self, source: SourceUse) {
        self.source.set(source);
    }

    /// The socket for interfaces, addresses and routes.
    pub fn route(&self) -> &Netlink {
        &self.route
    }

    /// The fence, if the kernel has nf_tables and the fence is not turned off.
    pub fn fence(&self) -> Option<Rc<Fence>> {
        self.fence.borrow().clone()
    }

    /// Stops using the fence, and closes its socket.
    pub fn turn_fence_off(&self) {
        self.fence.take();
    }

    /// Where the kernel sends packets to each address.
    pub fn destinations(&self, addresses: &[IpAddr]) -> HashMap<IpAddr, Result<Destination, Fault>> {
        let replies = rtnl::destinations(&self.route, addresses);
        let replies = replies.unwrap_or_else(|errno| vec![Err(errno); addresses.len()]);
        let outcomes = addresses.iter().zip(replies).map(|(address, reply)| {
            (*address, reply.map_err(|errno| fault::address_failed("RTM_GETROUTE", *address, errno)))
        });
        outcomes.collect()
    }

    /// Opens the fence for addresses that are about to be added.
    ///
    /// # Errors
    /// The kernel refused it; ENOENT if the fence is missing.
    pub fn open_fence(&self, placements: &[Placement], lifetime: Lifetime) -> Result<(), Errno> {
        let Some(fence) = self.fence() else { return Ok(()) };
        let elements: Vec<_> =
            placements.iter().map(|placement| (placement.address, timeout(lifetime))).collect();
        fence.open_for(&elements)
    }

    /// Adds addresses for which the fence is open. Returns those that failed. `detect` keeps the kernel's duplicate address
    /// detection of IPv6 on.
    pub fn add(&self, placements: &[Placement], lifetime: Lifetime, detect: bool) -> HashMap<IpAddr, Fault> {
        let timed: Vec<(Placement, Lifetime)> =
            placements.iter().map(|placement| (*placement, lifetime)).collect();
        let outcomes = rtnl::add(&self.route, &timed, self.source.get(), detect);
        let failed = placements.iter().zip(outcomes).filter_map(|(placement, outcome)| {
            let address = placement.address;
            Some((address, fault::address_failed("RTM_NEWADDR", address, outcome.err()?)))
        });
        let failed: HashMap<IpAddr, Fault> = failed.collect();
        self.remove_from_fence(failed.keys().copied());
        failed
    }

    /// Adds addresses that this host has on another interface, or that another program removed. The fence is open for them, and
    /// no other host can have them, so there is no duplicate address detection.
    pub fn add_undetected(&self, placements: &[(Placement, Lifetime)]) -> Outcomes {
        rtnl::add(&self.route, placements, self.source.get(), false)
    }

    /// Renews addresses in the fence and in the kernel, and returns the outcome of each.
    pub fn renew(&self, placements: &[(Placement, Lifetime)]) -> Vec<Result<(), Fault>> {
        let mut renewed = placements.to_vec();
        let mut failed: HashMap<IpAddr, Fault> = HashMap::new();
        if let Some(fence) = self.fence() {
            let elements: Vec<_> =
                renewed.iter().map(|(placement, lifetime)| (placement.address, timeout(*lifetime))).collect();
            match fence.renew(&elements) {
                Ok(expired) => {
                    failed.extend(expired.into_iter().map(|one| (one, fault::lease_expired(one))));
                }
                Err(errno) => {
                    let refused = |address| fault::address_failed("renewing the fence", address, errno);
                    failed.extend(elements.into_iter().map(|(address, _)| (address, refused(address))));
                }
            }
            renewed.retain(|(placement, _)| !failed.contains_key(&placement.address));
        }
        let mut outcomes = rtnl::renew(&self.route, &renewed, self.source.get()).into_iter();
        let outcome = |(placement, _): &(Placement, Lifetime)| match failed.get(&placement.address) {
            Some(fault) => Err(fault.clone()),
            None => outcomes
                .next()
                .unwrap_or(Err(Errno::EIO))
                .map_err(|errno| fault::address_failed("RTM_NEWADDR", placement.address, errno)),
        };
        placements.iter().map(outcome).collect()
    }

    /// Resets the connections of addresses, closes the fence, removes the addresses, and verifies that the host no longer
    /// has them.
    pub fn remove(&self, placements: &[Placement]) -> Vec<Result<Removal, Fault>> {
        let addresses: Vec<IpAddr> = placements.iter().map(|placement| placement.address).collect();
        if addresses.is_empty() {
            return Vec::new();
        }
        if let Err(errno) = sock_diag::destroy_connections(&self.diag, &addresses) {
            tracing::warn!(
                ?addresses, %errno,
                "cannot reset the connections of addresses before their removal; remote ends may wait for a timeout"
            );
        }
        if let Some(fence) = self.fence()
            && let Err(errno) = fence.close(&addresses)
        {
            tracing::error!(?addresses, %errno, "cannot close the fence of addresses before their removal");
        }
        let outcomes = rtnl::remove(&self.route, placements);
        let mut destinations = self.destinations(&addresses);
        let outcomes = placements.iter().zip(outcomes).map(|(placement, outcome)| match outcome {
            // The address or its interface was removed already.
            Ok(()) | Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => {
                let destination = destinations.remove(&placement.address);
                let verified =
                    matches!(destination, Some(Ok(destination)) if destination != Destination::Local);
                Ok(Removal { address: placement.address, verified })
            }
            Err(errno) => Err(fault::address_failed("RTM_DELADDR", placement.address, errno)),
        });
        let outcomes: Vec<Result<Removal, Fault>> = outcomes.collect();
        self.unfence_or_quarantine(outcomes.iter().flatten());
        outcomes
    }

    /// Removes from the fence the addresses that the host no longer has, and quarantines the others.
    fn unfence_or_quarantine<'r>(&self, removed: impl Iterator<Item = &'r Removal>) {
        let mut absent = Vec::new();
        for Removal { address, verified } in removed {
            match verified {
                true => absent.push(*address),
                false => {
                    self.quarantine.borrow_mut().insert(*address);
                    tracing::warn!(
                        %address,
                        "the removed address is still local: the host has it on another interface or with another prefix"
                    );
                }
            }
        }
        if let Some(fence) = self.fence()
            && let Err(errno) = fence.forget(&absent)
        {
            tracing::error!(addresses = ?absent, %errno, "cannot remove addresses from the fence; it still blocks them");
        }
    }

    /// Undoes [`HostAddresses::add`].
    pub fn roll_back(&self, placements: &[Placement]) {
        let _ = rtnl::remove(&self.route, placements); // An address that was removed already is no failure.
        self.remove_from_fence(placements.iter().map(|placement| placement.address));
    }

    fn remove_from_fence(&self, addresses: impl Iterator<Item = IpAddr>) {
        let addresses: Vec<IpAddr> = addresses.collect();
        if let Some(fence) = self.fence()
            && let Err(errno) = fence.forget(&addresses).and_then(|()| fence.close(&addresses))
        {
            tracing::error!(?addresses, %errno, "cannot remove addresses from the fence after a failed request");
        }
    }

    /// The removed addresses that are still local elsewhere.
    pub fn quarantined(&self) -> Vec<IpAddr> {
        self.quarantine.borrow().iter().copied().collect()
    }

    /// Whether a removed address is still local elsewhere.
    pub fn is_quarantined(&self, address: IpAddr) -> bool {
        self.quarantine.borrow().contains(&address)
    }

    /// Ends the quarantine of an address that is held again.
    pub fn end_quarantine(&self, address: IpAddr) {
        self.quarantine.borrow_mut().remove(&address);
    }

    /// Looks for the quarantined addresses, except those that have a lease again; ends the quarantine of those that the host
    /// no longer has.
    pub fn check_quarantine(&self, has_lease: impl Fn(IpAddr) -> bool) {
        let quarantined: Vec<IpAddr> =
            self.quarantine.borrow().iter().filter(|address| !has_lease(**address)).copied().collect();
        if quarantined.is_empty() {
            return;
        }
        let destinations = self.destinations(&quarantined);
        let is_absent = |address: &IpAddr| {
            destinations.get(address).is_some_and(|to| matches!(to, Ok(to) if *to != Destination::Local))
        };
        let absent = quarantined.into_iter().filter(is_absent);
        let absent: Vec<Removal> = absent.map(|address| Removal { address, verified: true }).collect();
        self.quarantine.borrow_mut().retain(|address| absent.iter().all(|one| one.address != *address));
        self.unfence_or_quarantine(absent.iter());
    }
}

/// The timeout of a fence element.
fn timeout(lifetime: Lifetime) -> Option<Duration> {
    lifetime.map(|seconds| Duration::from_secs(seconds.into()))
}
