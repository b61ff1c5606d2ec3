//! Adds addresses: checks them, probes for conflicts, opens the fence, puts them on their interface, waits for duplicate
//! address detection, starts their listeners, and announces them.
//!
//! Promises: never adds an address that this host or another host uses; a failure at any step rolls back the steps before
//! it; each address of a request, with its followers, succeeds or fails on its own. The lease begins just before the
//! kernel gets the address.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use portreeve_protocol::{EventCode, Fault, FaultCode, Text, address};

use super::add_batch::{AddBatch, Start};
use super::lease::{Lease, LeaseState, MIN_LIFETIME};
use super::lease_end::LeaseEnd;
use super::shares::Limit;
use super::{Addresses, dad, fault};
use crate::holder::Holder;
use crate::sys::rtnl::{Destination, Lookup, Placement};
use crate::sys::{BootTime, Interface};

/// The largest number of probes for one address.
const MAX_PROBES: u8 = 3;

/// An address to add, as policy permits it.
#[derive(Clone, Debug)]
pub struct AddSpec {
    /// The address.
    pub address: IpAddr,
    /// The name of the interface.
    pub interface: Text<15>,
    /// The prefix length.
    pub prefix: u8,
    /// The leader, if this address follows one: both are added or neither is.
    pub follows: Option<IpAddr>,
}

/// What all addresses of a request have in common.
#[derive(Clone, Copy, Debug)]
pub struct AddParams {
    /// The owner.
    pub holder: Holder,
    /// When the leases end.
    pub end: LeaseEnd,
    /// How many addresses the owner may have.
    pub limit: Limit,
    /// The number of this ownership, from the coordinator.
    pub epoch: u64,
    /// How many probes are sent for each address; 0 turns conflict detection off, for IPv6 too.
    pub probes: u8,
    /// Whether the addresses are announced to the neighbours.
    pub announce: bool,
}

/// The outcome of one address, for the reply.
pub type Outcome = Result<address::Lease, Fault>;

impl Addresses {
    /// Adds addresses, and returns the outcome of each, in their order.
    pub async fn add(&self, specs: Vec<Result<AddSpec, Fault>>, params: AddParams) -> Vec<Outcome> {
        let mut batch = self.start_batch(specs, params);
        let _ = batch.fail_groups(&self.table); // Nothing to roll back yet.
        if params.probes > 0 && batch.pending.iter().any(|(_, placement)| placement.address.is_ipv4()) {
            let rivals =
                self.prober.probe(&batch.placements(), params.probes.min(MAX_PROBES), params.holder).await;
            batch.fail(&self.table, |placement| {
                let rival = rivals.get(&placement.address)?;
                Some(fault::conflict(placement.address, Some(*rival)))
            });
            batch.fail(&self.table, |placement| self.check_interface(placement));
            batch.fail(&self.table, |_| check_end(params.end).err());
            let _ = batch.fail_groups(&self.table); // Nothing to roll back yet.
        }
        let deadline = self.open_fence(&mut batch, params.end);
        let new = self.with_kernel_deadlines(&batch.placements(), params.holder, deadline);
        let failed = self.host.add(&new, params.probes > 0);
        batch.fail_all(&self.table, &failed);
        if params.probes > 0 {
            let mut failed = dad::wait(self.host.route(), &batch.placements()).await;
            match deadline.map(|end| BootTime::now().duration_until(end)) {
                Some(Duration::ZERO) => {
                    let ended = |one: &Placement| (one.address, fault::deadline_passed());
                    failed = batch.placements().iter().map(ended).collect();
                }
                // The kernel counts whole seconds, so it may have removed them already.
                Some(rest) if rest < MIN_LIFETIME => {
                    failed.values_mut().for_each(|fault| *fault = fault::deadline_passed());
                }
                _ => {}
            }
            self.roll_back_failed(&mut batch, &failed);
        }
        let failed = self.start_listeners(&batch.placements());
        self.roll_back_failed(&mut batch, &failed);
        let failed = batch.fail_groups(&self.table);
        self.roll_back(&failed);
        self.finish(batch, deadline, params.announce)
    }

    /// Opens the fence for the addresses of a batch, and fails all of them if that is impossible. Returns the end of their
    /// leases, which begin now.
    fn open_fence(&self, batch: &mut AddBatch, end: LeaseEnd) -> Option<BootTime> {
        let _ = self.receive_fence_changes(); // none may be queued
        let placements = batch.placements();
        let open = || {
            let deadline = end.deadline(BootTime::now());
            self.host.open_fence(&placements, deadline).map(|()| deadline)
        };
        match self.change_fence(open, || true) {
            Ok(deadline) => {
                let mut table = self.table.borrow_mut();
                for placement in &placements {
                    if let Some(lease) = table.get_mut(placement.address) {
                        (lease.state, lease.deadline) = (LeaseState::Adding, deadline);
                    }
                }
                deadline
            }
            Err(errno) => {
                batch.fail(&self.table, |placement| {
                    Some(fault::address_failed("opening the fence", placement.address, errno))
                });
                None
            }
        }
    }

    /// Checks the addresses, and enters them in the lease table.
    fn start_batch(&self, specs: Vec<Result<AddSpec, Fault>>, params: AddParams) -> AddBatch {
        let (mut interfaces, mut seen) = (HashMap::new(), HashSet::new());
        let mut batch = AddBatch::default();
        // The lease of another holder may have expired since the lease loop last ran.
        self.remove_expired_among(specs.iter().flatten().map(|spec| spec.address));
        let new: Vec<&AddSpec> = {
            let table = self.table.borrow();
            specs.iter().flatten().filter(|spec| table.get(spec.address).is_none()).collect()
        };
        let lookups = new.into_iter().filter_map(|spec| {
            let interface = self.find_interface(&spec.interface, &mut interfaces).ok()?;
            Some(Lookup { address: spec.address, vrf: interface.vrf })
        });
        let lookups: Vec<Lookup> = lookups.collect();
        let destinations = self.host.destinations(&lookups);
        for spec in specs {
            // A repeated address is refused. It gets no leader, so that it does not fail its group.
            let first = spec.as_ref().ok().filter(|spec| seen.insert(spec.address));
            let leader = first.map(|spec| spec.follows.unwrap_or(spec.address));
            batch.push(
                leader,
                spec.and_then(|spec| self.start(&spec, params, &mut interfaces, &destinations)),
            );
        }
        batch
    }

    /// Checks one address, and enters it in the lease table.
    fn start(
        &self,
        spec: &AddSpec,
        params: AddParams,
        interfaces: &mut HashMap<Text<15>, Result<Interface, Fault>>,
        destinations: &HashMap<IpAddr, Result<Destination, Fault>>,
    ) -> Result<Start, Fault> {
        let address = spec.address;
        let is_own = |lease: &&Lease| lease.holder == params.holder;
        self.remove_expired_among(std::iter::once(address)); // since the check of the whole batch
        // A peer repeats a request whose reply it lost, or that is still in progress.
        if self.table.borrow().get(address).filter(is_own).is_some() {
            let renewed = self.renew(&[Ok(address)], params.holder, Some(params.end), params.epoch);
            let outcome = renewed.into_iter().next();
            return outcome.unwrap_or_else(|| Err(fault::removed_meanwhile(address))).map(Start::Renewed);
        }
        check_end(params.end)?;
        let interface = self.find_interface(&spec.interface, interfaces)?;
        check_link(&interface, params.probes > 0)?;
        if (params.probes > 0 || params.announce) && interface.mac.is_none() {
            return Err(fault::no_mac(&spec.interface));
        }
        let placement = Placement { address, index: interface.index, prefix: spec.prefix };
        let lease = Lease {
            placement,
            interface: spec.interface.clone(),
            holder: params.holder,
            lifetime: params.end.lifetime(BootTime::now()),
            deadline: None,
            renewed_with_all: false,
            kernel_deadline: None,
            expiry_notified: false,
            epoch: params.epoch,
            follows: spec.follows,
            state: LeaseState::Probing,
            announcement_series: 0,
            restored: VecDeque::new(),
            removed_with_link: false,
        };
        if let Some(destination) = destinations.get(&address) {
            self.check_destination(Lookup { address, vrf: interface.vrf }, destination.clone()?)?;
        }
        self.table.borrow_mut().insert_new(lease, params.limit)?;
        Ok(Start::New(placement))
    }

    /// Looks an interface up, once for all addresses of a request.
    fn find_interface(
        &self,
        name: &Text<15>,
        found: &mut HashMap<Text<15>, Result<Interface, Fault>>,
    ) -> Result<Interface, Fault> {
        let interface = found.entry(name.clone()).or_insert_with(|| {
            let interface = Interface::by_name(self.host.route(), name)
                .map_err(|errno| fault::interface_failed(name, errno))?;
            self.reconciler.interface_changed(interface.clone());
            Ok(interface)
        });
        interface.clone()
    }

    /// Checks that the kernel would send packets to an address to one other host, or nowhere, if it were not added.
    fn check_destination(&self, lookup: Lookup, destination: Destination) -> Result<(), Fault> {
        let address = lookup.address;
        match destination {
            Destination::Elsewhere | Destination::LocalOutsideVrf => Ok(()),
            Destination::Local => Err(match self.host.interface_with(&lookup) {
                Ok(None) => fault::has_local_route(address),
                Ok(Some(index)) => {
                    let name = self.interfaces.get(index).map_or_else(String::new, |found| found.name);
                    fault::on_interface(address, &format!("the interface {name:?}"))
                }
                Err(_) => fault::on_interface(address, "this host"),
            }),
            Destination::Broadcast => Err(fault::no_host_address(address, "a broadcast address")),
            Destination::Anycast => Err(fault::no_host_address(address, "an anycast address")),
            Destination::Multicast => Err(fault::no_host_address(address, "a multicast address")),
        }
    }

    /// Checks the interface again after probing, which takes time: without a carrier no answer could arrive. Returns the fault,
    /// if any.
    fn check_interface(&self, placement: &Placement) -> Option<Fault> {
        match Interface::by_index(self.host.route(), placement.index) {
            Ok(interface) => check_link(&interface, true).err(),
            Err(errno) => Some(fault::address_failed("RTM_GETLINK", placement.address, errno)),
        }
    }

    /// Starts the floating listeners of addresses. Returns the addresses with a listener that failed to start.
    fn start_listeners(&self, placements: &[Placement]) -> HashMap<IpAddr, Fault> {
        let Some(listeners) = self.listeners() else {
            return HashMap::new();
        };
        let start =
            |placement: &Placement| Some((placement.address, listeners.start(placement.address).err()?));
        let failed = placements.iter().filter_map(start).collect();
        self.vrf_listeners.bind_new(placements);
        failed
    }

    /// Rolls the failed addresses of a batch back, and fails them.
    fn roll_back_failed(&self, batch: &mut AddBatch, failed: &HashMap<IpAddr, Fault>) {
        let mut placements = batch.placements();
        placements.retain(|placement| failed.contains_key(&placement.address));
        self.roll_back(&placements);
        batch.fail_all(&self.table, failed);
    }

    /// Stops the listeners of addresses that were just added, and removes the addresses.
    fn roll_back(&self, placements: &[Placement]) {
        if placements.is_empty() {
            return;
        }
        let addresses: Vec<IpAddr> = placements.iter().map(|placement| placement.address).collect();
        self.listeners().into_iter().for_each(|listeners| listeners.stop(&addresses));
        self.host.roll_back(placements);
    }

    /// Marks the pending addresses as held, announces them, and returns the outcome of every address.
    fn finish(&self, mut batch: AddBatch, deadline: Option<BootTime>, announce: bool) -> Vec<Outcome> {
        let added = batch.placements();
        for (index, placement) in batch.pending {
            let Some(lease) = self.mark_held(&placement, deadline) else { continue };
            if announce {
                self.announcer.announce(placement.address);
            }
            if let Some(outcome) = batch.outcomes.get_mut(index) {
                *outcome = Ok(lease);
            }
        }
        self.multicast_limit.check(&self.table.borrow(), &added);
        self.wake.notify_one();
        let is_conflict =
            |outcome: &&Outcome| outcome.as_ref().is_err_and(|fault| fault.code == FaultCode::Conflict);
        self.counters.conflicts.add(batch.outcomes.iter().filter(is_conflict).count());
        batch.outcomes
    }

    fn mark_held(&self, placement: &Placement, deadline: Option<BootTime>) -> Option<address::Lease> {
        let mut table = self.table.borrow_mut();
        let lease = table.get_mut(placement.address)?;
        lease.state = LeaseState::Held;
        lease.deadline = deadline;
        self.host.end_quarantine(placement.address);
        self.events.address(lease, EventCode::AddressAdded, "");
        Some(lease.to_wire(BootTime::now()))
    }
}

/// Checks that a lease that begins now can last until its end.
///
/// # Errors
/// Expired.
pub fn check_end(end: LeaseEnd) -> Result<(), Fault> {
    match end {
        LeaseEnd::At(at) if BootTime::now().duration_until(at) < MIN_LIFETIME => {
            Err(fault::deadline_passed())
        }
        _ => Ok(()),
    }
}

/// Checks that an interface is up, and has a carrier if it has to.
fn check_link(interface: &Interface, needs_carrier: bool) -> Result<(), Fault> {
    match interface {
        Interface { up: false, name, .. } => Err(fault::interface_down(name)),
        Interface { carrier: false, name, .. } if needs_carrier => Err(fault::no_carrier(name)),
        _ => Ok(()),
    }
}
