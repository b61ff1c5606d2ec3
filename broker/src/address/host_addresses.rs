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
use super::fence_deadlines::MAX_LATENESS;
use super::interface_cache::InterfaceCache;
use super::lease_end::{ROUNDING, kernel_seconds};
use crate::sys::rtnl::{self, Destination, Lifetime, Lookup, Outcomes, Placement, SourceUse};
use crate::sys::sock_diag::{self, Connection};
use crate::sys::{BootTime, Netlink};

/// Changes the addresses of the host.
pub(super) struct HostAddresses {
    route: Rc<Netlink>,
    diag: Netlink,
    interfaces: Rc<InterfaceCache>,
    source: Cell<SourceUse>,
    /// Absent if the kernel has no nf_tables, and after [`HostAddresses::turn_fence_off`].
    fence: RefCell<Option<Rc<Fence>>>,
    /// Removed addresses that the host still has on another interface or with another prefix, and where they are looked up. They
    /// stay fenced.
    quarantine: RefCell<HashMap<IpAddr, Lookup>>,
}

impl HostAddresses {
    pub fn new(
        route: Rc<Netlink>,
        diag: Netlink,
        interfaces: Rc<InterfaceCache>,
        fence: Option<Fence>,
        source: SourceUse,
    ) -> Self {
        let fence = RefCell::new(fence.map(Rc::new));
        Self { route, diag, interfaces, source: source.into(), fence, quarantine: RefCell::default() }
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

    /// An address and the VRF of its interface.
    pub fn lookup(&self, placement: &Placement) -> Lookup {
        Lookup { address: placement.address, vrf: self.interfaces.vrf_of(placement.index) }
    }

    /// Where the kernel sends packets to each address; [`Destination::Local`] only if the VRF has the address, for an address that
    /// is looked up in a VRF.
    pub fn destinations(&self, lookups: &[Lookup]) -> HashMap<IpAddr, Result<Destination, Fault>> {
        let replies = rtnl::destinations(&self.route, lookups);
        let mut replies = replies.unwrap_or_else(|errno| vec![Err(errno); lookups.len()]);
        let undecided = |(lookup, reply): (&Lookup, &Result<Destination, Errno>)| {
            let is_down = |index| self.interfaces.get(index).is_some_and(|device| !device.up);
            *reply == Ok(Destination::LocalOutsideVrf) || lookup.vrf.is_some_and(|vrf| is_down(vrf.index))
        };
        if lookups.iter().zip(&replies).any(undecided) {
            let present = self.list_by_vrf();
            for (lookup, reply) in
                lookups.iter().zip(&mut replies).filter(|(lookup, reply)| undecided((lookup, reply)))
            {
                *reply = match &present {
                    Ok(present) if present.contains_key(lookup) => Ok(Destination::Local),
                    Ok(_) => Ok(Destination::Elsewhere),
                    Err(errno) => Err(*errno),
                };
            }
        }
        let outcomes = lookups.iter().zip(replies).map(|(Lookup { address, .. }, reply)| {
            (*address, reply.map_err(|errno| fault::address_failed("RTM_GETROUTE", *address, errno)))
        });
        outcomes.collect()
    }

    /// The index of the interface that has a local address; `None` if a route that somebody added makes it local.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn interface_with(&self, lookup: &Lookup) -> Result<Option<u32>, Errno> {
        match lookup.vrf {
            None => rtnl::interface_with(&self.route, lookup.address),
            Some(_) => Ok(self.list_by_vrf()?.get(lookup).copied()),
        }
    }

    /// The index of the interface that has each address of the host.
    fn list_by_vrf(&self) -> Result<HashMap<Lookup, u32>, Errno> {
        let present = rtnl::list(&self.route)?.into_iter();
        Ok(present.map(|one| (self.lookup(&one.placement), one.placement.index)).collect())
    }

    /// Adds addresses for which the fence is open. Returns those that failed. `detect` keeps the kernel's duplicate address
    /// detection of IPv6 on.
    pub fn add(&self, placements: &[(Placement, Option<BootTime>)], detect: bool) -> HashMap<IpAddr, Fault> {
        let outcomes = self.add_to_kernel(placements, detect, ROUNDING);
        let failed = placements.iter().zip(outcomes).filter_map(|((placement, _), outcome)| {
            let address = placement.address;
            Some((address, fault::address_failed("RTM_NEWADDR", address, outcome.err()?)))
        });
        let failed: HashMap<IpAddr, Fault> = failed.collect();
        self.remove_from_fence(failed.keys().copied());
        failed
    }

    /// Adds addresses that this host has on another interface, or that another program removed. The fence is open for them, and
    /// no other host can have them, so there is no duplicate address detection. Each with the time at which the kernel is to
    /// remove it.
    pub fn add_undetected(&self, placements: &[(Placement, Option<BootTime>)]) -> Outcomes {
        self.add_to_kernel(placements, false, Duration::ZERO)
    }

    fn add_to_kernel(
        &self,
        placements: &[(Placement, Option<BootTime>)],
        detect: bool,
        rounding: Duration,
    ) -> Outcomes {
        let now = BootTime::now();
        let timed = with_lifetimes(placements, now, rounding);
        let outcomes = rtnl::add(&self.route, &timed, self.source.get(), detect);
        // Without the fence the kernel's lifetime is what ends the lease.
        if self.fence().is_none() && now.duration_until(BootTime::now()) > MAX_LATENESS {
            let added = placements.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
            let added: Vec<_> = added.map(|(placement, _)| *placement).collect();
            self.set_kernel_lifetimes(&added);
        }
        outcomes
    }

    /// Gives addresses the lifetime in the kernel that ends at this time, and returns the outcome of each.
    pub fn set_kernel_lifetimes(&self, placements: &[(Placement, Option<BootTime>)]) -> Outcomes {
        let timed = |now| with_lifetimes(placements, now, ROUNDING);
        let renew = |now| rtnl::renew(&self.route, &timed(now), self.source.get());
        let now = BootTime::now();
        let outcomes = renew(now);
        // As in `add_to_kernel`.
        match self.fence().is_none() && now.duration_until(BootTime::now()) > MAX_LATENESS {
            true => renew(BootTime::now()),
            false => outcomes,
        }
    }

    /// Renews addresses that have an element of their own in the fence, there and in the kernel, until their deadlines. Returns the
    /// outcome of each.
    pub fn renew(&self, placements: &[(Placement, Option<BootTime>)]) -> Vec<Result<(), Fault>> {
        let mut outcomes = self.renew_in_fence(placements);
        let in_fence = placements.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
        let in_fence: Vec<_> = in_fence.map(|(placement, _)| *placement).collect();
        let in_kernel = in_fence.iter().zip(self.set_kernel_lifetimes(&in_fence));
        for (outcome, ((placement, _), renewed)) in
            outcomes.iter_mut().filter(|one| one.is_ok()).zip(in_kernel)
        {
            *outcome =
                renewed.map_err(|errno| fault::address_failed("RTM_NEWADDR", placement.address, errno));
        }
        outcomes
    }

    /// Resets the connections of addresses, closes the fence, removes the addresses, and verifies that the host no longer
    /// has them.
    pub fn remove(&self, placements: &[Placement]) -> Vec<Result<Removal, Fault>> {
        let addresses: Vec<IpAddr> = placements.iter().map(|placement| placement.address).collect();
        if addresses.is_empty() {
            return Vec::new();
        }
        let lookups: Vec<Lookup> = placements.iter().map(|placement| self.lookup(placement)).collect();
        if let Err(errno) = self.reset_connections(&lookups) {
            tracing::warn!(
                ?addresses, error = %errno,
                "cannot reset the connections of addresses before their removal; remote ends may wait for a timeout"
            );
        }
        if let Some(fence) = self.fence()
            && let Err(errno) = fence.close(&addresses)
        {
            tracing::error!(?addresses, error = %errno, "cannot close the fence of addresses before their removal");
        }
        let outcomes = rtnl::remove(&self.route, placements);
        let mut destinations = self.destinations(&lookups);
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
        let removed = lookups.iter().zip(&outcomes);
        self.unfence_or_quarantine(
            removed.filter_map(|(lookup, outcome)| Some((*lookup, outcome.as_ref().ok()?.verified))),
        );
        outcomes
    }

    /// Resets the connections of addresses that are about to be removed from these VRFs. Another VRF that has one of the addresses
    /// keeps its connections.
    fn reset_connections(&self, removed: &[Lookup]) -> Result<(), Errno> {
        let addresses: Vec<IpAddr> = removed.iter().map(|lookup| lookup.address).collect();
        let mut connections = sock_diag::connections_at(&self.diag, &addresses)?;
        let removed: HashSet<&Lookup> = removed.iter().collect();
        let lookup = |connection: &Connection| Lookup {
            address: connection.local,
            vrf: self.interfaces.vrf_of(connection.bound_interface),
        };
        let elsewhere: HashSet<Lookup> = connections.iter().map(lookup).collect();
        let elsewhere = elsewhere.into_iter().filter(|lookup| !removed.contains(lookup));
        // An address may be in several VRFs, so each query is about one of them.
        let kept = elsewhere.filter(|lookup| {
            let to = self.destinations(&[*lookup]).remove(&lookup.address);
            matches!(to, Some(Ok(Destination::Local)))
        });
        let kept: HashSet<Lookup> = kept.collect();
        connections.retain(|connection| !kept.contains(&lookup(connection)));
        sock_diag::destroy(&self.diag, &connections)
    }

    /// Removes from the fence the addresses that the host no longer has, and quarantines the others.
    fn unfence_or_quarantine(&self, removed: impl Iterator<Item = (Lookup, bool)>) {
        let mut absent = Vec::new();
        for (lookup, verified) in removed {
            match verified {
                true => absent.push(lookup.address),
                false => {
                    self.quarantine.borrow_mut().insert(lookup.address, lookup);
                    tracing::warn!(
                        address = %lookup.address,
                        "the removed address is still local: the host has it on another interface or with another prefix"
                    );
                }
            }
        }
        if let Some(fence) = self.fence()
            && let Err(errno) = fence.forget(&absent)
        {
            tracing::error!(addresses = ?absent, error = %errno, "cannot remove addresses from the fence; it still blocks them");
        }
    }

    /// Undoes [`HostAddresses::add`].
    pub fn roll_back(&self, placements: &[Placement]) {
        let _ = rtnl::remove(&self.route, placements); // An address that was removed already is no failure.
        self.remove_from_fence(placements.iter().map(|placement| placement.address));
    }

    pub(super) fn remove_from_fence(&self, addresses: impl Iterator<Item = IpAddr>) {
        let addresses: Vec<IpAddr> = addresses.collect();
        if let Some(fence) = self.fence()
            && let Err(errno) = fence.forget(&addresses).and_then(|()| fence.close(&addresses))
        {
            tracing::error!(?addresses, error = %errno, "cannot remove addresses from the fence after a failed request");
        }
    }

    /// The removed addresses that are still local elsewhere.
    pub fn quarantined(&self) -> Vec<IpAddr> {
        self.quarantine.borrow().keys().copied().collect()
    }

    /// Whether a removed address is still local elsewhere.
    pub fn is_quarantined(&self, address: IpAddr) -> bool {
        self.quarantine.borrow().contains_key(&address)
    }

    /// Ends the quarantine of an address that is held again.
    pub fn end_quarantine(&self, address: IpAddr) {
        self.quarantine.borrow_mut().remove(&address);
    }

    /// Looks for the quarantined addresses, except those that have a lease again; ends the quarantine of those that the host
    /// no longer has.
    pub fn check_quarantine(&self, has_lease: impl Fn(IpAddr) -> bool) {
        let quarantined: Vec<Lookup> =
            self.quarantine.borrow().values().filter(|lookup| !has_lease(lookup.address)).copied().collect();
        if quarantined.is_empty() {
            return;
        }
        let destinations = self.destinations(&quarantined);
        let is_absent = |lookup: &Lookup| {
            let to = destinations.get(&lookup.address);
            to.is_some_and(|to| matches!(to, Ok(to) if *to != Destination::Local))
        };
        let absent: Vec<Lookup> = quarantined.into_iter().filter(is_absent).collect();
        self.quarantine.borrow_mut().retain(|_, lookup| !absent.contains(lookup));
        self.unfence_or_quarantine(absent.into_iter().map(|lookup| (lookup, true)));
    }
}

/// The addresses with the lifetimes that the kernel takes.
fn with_lifetimes(
    placements: &[(Placement, Option<BootTime>)],
    now: BootTime,
    rounding: Duration,
) -> Vec<(Placement, Lifetime)> {
    let lifetime = |deadline: &Option<BootTime>| kernel_seconds(*deadline, now, rounding);
    placements.iter().map(|(placement, deadline)| (*placement, lifetime(deadline))).collect()
}
