//! Adding: an address is looked at, asked for on the network, fenced, put on its interface, waited for, announced.
//!
//! Promises: an address that this host or another one has is not added; a failure at any step takes back what the steps
//! before it did; of many addresses each stands for itself. The lease begins when the kernel has the address.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::{EventCode, Fault, FaultCode, Text, address};

use super::lease::{Lease, State};
use super::probe::hardware_text;
use super::together::{Begun, Way};
use super::{Addresses, fault};
use crate::holder::Holder;
use crate::sys::Interface;
use crate::sys::boot_time::BootTime;
use crate::sys::rtnl::{self, Lifetime, Place};

/// An address that policy permits, and where it says to put it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The address.
    pub address: IpAddr,
    /// The interface's name.
    pub interface: Text<15>,
    /// The prefix length.
    pub prefix: u8,
    /// The address that it comes with or not at all.
    pub follows: Option<IpAddr>,
}

/// What goes for all addresses of a request.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Who asks.
    pub holder: Holder,
    /// How long they stay.
    pub lifetime: Lifetime,
    /// How many addresses who asks may have.
    pub most: usize,
    /// The number of this ownership.
    pub epoch: u64,
    /// How often the network is asked first.
    pub probes: u8,
    /// Whether the neighbours are told.
    pub announce: bool,
}

/// What became of an address, as the peer is told.
pub type Outcome = Result<address::Lease, Fault>;

impl Addresses {
    /// Adds addresses and gives what became of each, in their order.
    pub async fn add(&self, asked: Vec<Result<Asked, Fault>>, how: How) -> Vec<Outcome> {
        let (mut links, mut seen) = (HashMap::new(), HashSet::new());
        let mut way = Way::default();
        // A request may come between the end of a lease and the clock's turn: what has ended is in nobody's way.
        self.end_leases();
        let new: Vec<IpAddr> = {
            let table = self.table.borrow();
            let all = asked.iter().flatten().map(|asked| asked.address);
            all.filter(|address| table.get(*address).is_none()).collect()
        };
        let local = self.are_local(&new);
        for asked in asked {
            // One that is named twice is refused the second time, and fails nothing else.
            let first = asked.as_ref().ok().filter(|asked| seen.insert(asked.address));
            let group = first.map(|asked| asked.follows.unwrap_or(asked.address));
            way.enter(group, asked.and_then(|asked| self.begin(&asked, how, &mut links, &local)));
        }
        let _nothing_was_done_for_them = way.fail_the_rest(&self.table);
        if how.probes > 0 && way.pending.iter().any(|(_, place)| place.address.is_ipv4()) {
            let rivals = self.probe(&way.places(), how.probes.min(3)).await;
            way.fail(&self.table, |place| {
                rivals.get(&place.address).map(|rival| conflict(place.address, Some(*rival)))
            });
            way.fail(&self.table, |place| self.unusable(place));
            let _nothing_was_done_for_them = way.fail_the_rest(&self.table);
        }
        let deadline = how.lifetime.map(|seconds| BootTime::now().after(Duration::from_secs(seconds.into())));
        let refused = self.put(&way.places(), how.lifetime, how.probes > 0);
        way.fail(&self.table, |place| refused.get(&place.address).cloned());
        if how.probes > 0 {
            let refused = self.settle(&way.places()).await;
            way.fail(&self.table, |place| refused.get(&place.address).cloned());
        }
        let refused = self.start_listeners(&way.places());
        way.fail(&self.table, |place| refused.get(&place.address).cloned());
        let rest = way.fail_the_rest(&self.table);
        self.take_back(&rest);
        let places = way.places();
        for (index, place) in way.pending {
            let told = self.hold(&place, deadline);
            if how.announce && told.is_some() {
                self.announce(place.address);
            }
            if let (Some(told), Some(outcome)) = (told, way.outcomes.get_mut(index)) {
                *outcome = Ok(told);
            }
        }
        self.warn_of_many(&places);
        self.changed.notify_one();
        let conflict =
            |outcome: &&Outcome| outcome.as_ref().is_err_and(|fault| fault.code == FaultCode::Conflict);
        self.counts.conflicts.add(way.outcomes.iter().filter(conflict).count());
        way.outcomes
    }

    /// Enters one address in the table, or says why not.
    fn begin(
        &self,
        asked: &Asked,
        how: How,
        links: &mut HashMap<Text<15>, Result<Interface, Fault>>,
        local: &HashMap<IpAddr, Result<bool, Fault>>,
    ) -> Result<Begun, Fault> {
        let address = asked.address;
        // A request may come twice, when its first reply was lost.
        if self.table.borrow().get(address).is_some_and(|lease| {
            lease.holder == how.holder && lease.state == State::Held && !lease.is_over(BootTime::now())
        }) {
            let renewed = self.renew(&[Ok(address)], Some(how.holder), Some(how.lifetime), how.epoch);
            return renewed.into_iter().next().unwrap_or_else(|| Err(gone(address))).map(Begun::Again);
        }
        let link = links.entry(asked.interface.clone()).or_insert_with(|| {
            Interface::named(&self.route, &asked.interface)
                .map_err(|errno| fault::of_interface(&asked.interface, errno))
        });
        let link = link.as_ref().map_err(Fault::clone)?;
        if !link.up {
            return Err(is_down(&asked.interface));
        }
        if (how.probes > 0 || how.announce) && link.hardware.is_none() {
            return Err(without_hardware(&asked.interface));
        }
        let place = Place { address, index: link.index, prefix: asked.prefix };
        let lease = Lease {
            place,
            interface: asked.interface.clone(),
            holder: how.holder,
            lifetime: how.lifetime,
            deadline: None,
            warned: false,
            epoch: how.epoch,
            follows: asked.follows,
            state: State::Adding,
            series: 0,
            put_back: VecDeque::new(),
        };
        if let Some(local) = local.get(&address)
            && local.clone()?
        {
            return Err(fault::of_address("RTM_GETROUTE", address, Errno::EEXIST));
        }
        self.table.borrow_mut().enter(lease, how.most)?;
        self.links.borrow_mut().insert(link.index, link.clone());
        Ok(Begun::New(place))
    }

    /// Whether this host has addresses, wherever; asked for all of them at once.
    pub(super) fn are_local(&self, addresses: &[IpAddr]) -> HashMap<IpAddr, Result<bool, Fault>> {
        let answers = rtnl::are_local(&self.route, addresses);
        let answers = answers.unwrap_or_else(|errno| vec![Err(errno); addresses.len()]);
        let told = addresses.iter().zip(answers).map(|(address, answer)| {
            (*address, answer.map_err(|errno| fault::of_address("RTM_GETROUTE", *address, errno)))
        });
        told.collect()
    }

    /// Why an address cannot be added any more, after a while of asking for it.
    fn unusable(&self, place: &Place) -> Option<Fault> {
        match Interface::numbered(&self.route, place.index) {
            Ok(link) if link.up => None,
            Ok(link) => Some(is_down(&link.name)),
            Err(errno) => Some(fault::of_address("RTM_GETLINK", place.address, errno)),
        }
    }

    /// Opens the fence and puts the addresses on their interfaces; gives those that failed.
    fn put(&self, places: &[Place], life: Lifetime, detect: bool) -> HashMap<IpAddr, Fault> {
        if let Some(fence) = &self.fence {
            let time = life.map(|seconds| Duration::from_secs(seconds.into()));
            let open: Vec<_> = places.iter().map(|place| (place.address, time)).collect();
            if let Err(error) = fence.open_for(&open) {
                let refused = |address| fault::of_address("opening the fence", address, fault::errno(&error));
                return open.into_iter().map(|(address, _)| (address, refused(address))).collect();
            }
        }
        let places: Vec<(Place, Lifetime)> = places.iter().map(|place| (*place, life)).collect();
        let results = rtnl::add(&self.route, &places, detect);
        let results = results.unwrap_or_else(|error| vec![Err(fault::errno(&error)); places.len()]);
        let failed = places.iter().zip(results).filter_map(|((place, _), result)| {
            Some((place.address, fault::of_address("RTM_NEWADDR", place.address, result.err()?)))
        });
        let failed: HashMap<IpAddr, Fault> = failed.collect();
        self.unfence(failed.keys().copied());
        failed
    }

    /// Starts what listens at addresses that are there; gives those where something cannot.
    fn start_listeners(&self, places: &[Place]) -> HashMap<IpAddr, Fault> {
        let Some(listeners) = self.listeners() else {
            return HashMap::new();
        };
        let start = |place: &Place| Some((place.address, listeners.start(place.address).err()?));
        let failed: HashMap<IpAddr, Fault> = places.iter().filter_map(start).collect();
        self.take_back(&those(places, &failed));
        failed
    }

    /// Takes addresses off their interfaces again that were just put there, with what has started at them.
    pub(super) fn take_back(&self, places: &[Place]) {
        if places.is_empty() {
            return;
        }
        let addresses: Vec<IpAddr> = places.iter().map(|place| place.address).collect();
        self.listeners().into_iter().for_each(|listeners| listeners.stop(&addresses));
        let _what_is_gone_by_itself_is_no_failure = rtnl::remove(&self.route, places);
        self.unfence(addresses.into_iter());
    }

    /// Filters addresses no longer that were not added after all.
    fn unfence(&self, addresses: impl Iterator<Item = IpAddr>) {
        let addresses: Vec<IpAddr> = addresses.collect();
        if let Some(fence) = &self.fence
            && let Err(error) = fence.forget(&addresses).and_then(|()| fence.close(&addresses))
        {
            tracing::error!(?addresses, %error, "the fence of addresses that were not added stays");
        }
    }

    fn hold(&self, place: &Place, deadline: Option<BootTime>) -> Option<address::Lease> {
        let mut table = self.table.borrow_mut();
        let lease = table.get_mut(place.address)?;
        lease.state = State::Held;
        lease.deadline = deadline;
        self.silent.borrow_mut().remove(&place.address);
        self.tell(lease, EventCode::AddressAdded, "");
        Some(lease.told(BootTime::now()))
    }
}

/// The places of what failed.
pub(super) fn those(places: &[Place], failed: &HashMap<IpAddr, Fault>) -> Vec<Place> {
    places.iter().copied().filter(|place| failed.contains_key(&place.address)).collect()
}

fn gone(address: IpAddr) -> Fault {
    Fault::new(FaultCode::NotFound, &format!("{address} is gone"))
}

pub(super) fn is_down(interface: &str) -> Fault {
    Fault::new(FaultCode::Os, &format!("the interface {interface:?} is down"))
        .about("RTM_GETLINK")
        .errno(libc::ENETDOWN)
        .remedy("set it up first")
}

/// The fault of an interface at which nobody can be asked or told who has an address.
pub(super) fn without_hardware(interface: &str) -> Fault {
    let message =
        format!("the interface {interface:?} has no hardware address: nobody is asked or told there");
    Fault::new(FaultCode::Unsupported, &message)
        .about(interface)
        .remedy("ask with no probes and without announcement")
}

pub(super) fn conflict(address: IpAddr, rival: Option<super::frame::Hardware>) -> Fault {
    let rival = rival.map(hardware_text);
    let who = rival.as_ref().map_or_else(|| "another host".to_owned(), |rival| format!("the host {rival}"));
    Fault::new(FaultCode::Conflict, &format!("{who} has {address}"))
        .about(rival.as_deref().unwrap_or_default())
        .remedy("have that host give it up")
}
