//! Adding: an address is looked at, asked for on the network, fenced, put on its interface, waited for, announced.
//!
//! Promises: an address that this host or another one has is not added; a failure at any step takes back what the steps
//! before it did; of many addresses each stands for itself. The lease begins when the kernel has the address.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::{Fault, FaultCode, Text, address};
use tokio::time::{Instant, sleep};

use super::boot_time::BootTime;
use super::kernel::{self, Lifetime, Place};
use super::lease::{Holder, Lease, State};
use super::probe::hardware_text;
use super::{Addresses, fault};
use crate::link::Interface;

/// How long the kernel may take to be sure of an IPv6 address.
const SETTLING: Duration = Duration::from_secs(5);
/// How often it is asked.
const LOOK: Duration = Duration::from_millis(50);

/// An address that policy permits, and where it says to put it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The address.
    pub address: IpAddr,
    /// The interface's name.
    pub interface: Text<15>,
    /// The prefix length.
    pub prefix: u8,
}

/// What goes for all addresses of a request.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Who asks.
    pub holder: Holder,
    /// Seconds; the configuration's where absent.
    pub lease: Option<u32>,
    /// The number of this ownership.
    pub epoch: u64,
    /// How often the network is asked first.
    pub probes: u8,
    /// Whether the neighbours are told.
    pub announce: bool,
}

/// What became of an address, as the peer is told.
pub type Outcome = Result<address::Lease, Fault>;

/// Addresses on their way, with their place in the request.
type Pending = Vec<(usize, Place)>;

impl Addresses {
    /// Adds addresses and gives what became of each, in their order.
    pub async fn add(&self, asked: Vec<Result<Asked, Fault>>, how: How) -> Vec<Outcome> {
        let mut links = HashMap::new();
        let mut pending = Pending::new();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(asked.len());
        let lifetime = how.lease.unwrap_or(self.settings.lease);
        for (index, asked) in asked.into_iter().enumerate() {
            let begun = asked.and_then(|asked| self.begin(&asked, how, lifetime, &mut links));
            outcomes.push(match begun {
                Ok(Begun::Again(lease)) => Ok(lease),
                Ok(Begun::New(place)) => {
                    pending.push((index, place));
                    Err(Fault::new(FaultCode::Busy, "it is being added"))
                }
                Err(fault) => Err(fault),
            });
        }
        let mut failed = |pending: &mut Pending, which: &dyn Fn(&Place) -> Option<Fault>| {
            pending.retain(|(index, place)| match which(place) {
                None => true,
                Some(fault) => {
                    self.table.borrow_mut().remove(place.address, false);
                    outcomes.get_mut(*index).into_iter().for_each(|outcome| *outcome = Err(fault.clone()));
                    false
                }
            });
        };
        if how.probes > 0 && pending.iter().any(|(_, place)| place.address.is_ipv4()) {
            let places: Vec<Place> = pending.iter().map(|(_, place)| *place).collect();
            let rivals = self.probe(&places, how.probes.min(3)).await;
            failed(&mut pending, &|place| {
                rivals.get(&place.address).map(|rival| conflict(place.address, Some(*rival)))
            });
            failed(&mut pending, &|place| self.unusable(place));
        }
        let deadline = BootTime::now().after(Duration::from_secs(lifetime.into()));
        let refused = self.put(&pending, lifetime, how.probes > 0);
        failed(&mut pending, &|place| refused.get(&place.address).cloned());
        if how.probes > 0 {
            let refused = self.settle(&pending).await;
            failed(&mut pending, &|place| refused.get(&place.address).cloned());
        }
        let refused = self.start_listeners(&pending);
        failed(&mut pending, &|place| refused.get(&place.address).cloned());
        for (index, place) in pending {
            let told = self.hold(&place, deadline);
            if how.announce && told.is_some() {
                self.announce(place.address);
            }
            if let (Some(told), Some(outcome)) = (told, outcomes.get_mut(index)) {
                *outcome = Ok(told);
            }
        }
        self.changed.notify_one();
        outcomes
    }

    /// Enters one address in the table, or says why not.
    fn begin(
        &self,
        asked: &Asked,
        how: How,
        lifetime: u32,
        links: &mut HashMap<Text<15>, Result<Interface, Fault>>,
    ) -> Result<Begun, Fault> {
        let address = asked.address;
        // A request may come twice, when its first reply was lost.
        if self.table.borrow().get(address).is_some_and(|lease| {
            lease.holder == how.holder && lease.state == State::Held && !lease.is_over(BootTime::now())
        }) {
            let renewed = self.renew(&[Ok(address)], Some(how.holder), Some(lifetime), how.epoch);
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
        let place = Place { address, index: link.index, prefix: asked.prefix };
        let lease = Lease {
            place,
            interface: asked.interface.clone(),
            holder: how.holder,
            lifetime: Some(lifetime),
            deadline: None,
            epoch: how.epoch,
            state: State::Adding,
            series: 0,
            put_back: VecDeque::new(),
        };
        if self.table.borrow().get(address).is_none() && self.is_local(address)? {
            return Err(fault::of_address("RTM_GETROUTE", address, Errno::EEXIST));
        }
        self.table.borrow_mut().enter(lease)?;
        self.links.borrow_mut().insert(link.index, link.clone());
        Ok(Begun::New(place))
    }

    pub(super) fn is_local(&self, address: IpAddr) -> Result<bool, Fault> {
        kernel::is_local(&self.route, address)
            .map_err(|errno| fault::of_address("RTM_GETROUTE", address, errno))
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
    fn put(&self, pending: &Pending, lifetime: u32, detect: bool) -> HashMap<IpAddr, Fault> {
        let life: Lifetime = Some(lifetime);
        if let Some(fence) = &self.fence {
            let time = Some(Duration::from_secs(lifetime.into()));
            let open: Vec<_> = pending.iter().map(|(_, place)| (place.address, time)).collect();
            if let Err(error) = fence.open_for(&open) {
                let refused = |address| fault::of_address("opening the fence", address, fault::errno(&error));
                return open.into_iter().map(|(address, _)| (address, refused(address))).collect();
            }
        }
        let places: Vec<(Place, Lifetime)> = pending.iter().map(|(_, place)| (*place, life)).collect();
        let results = kernel::add(&self.route, &places, detect);
        let results = results.unwrap_or_else(|error| vec![Err(fault::errno(&error)); places.len()]);
        let failed = places.iter().zip(results).filter_map(|((place, _), result)| {
            Some((place.address, fault::of_address("RTM_NEWADDR", place.address, result.err()?)))
        });
        let failed: HashMap<IpAddr, Fault> = failed.collect();
        self.unfence(failed.keys().copied());
        failed
    }

    /// Waits until the kernel is sure that IPv6 addresses are this host's alone; gives those that are not.
    async fn settle(&self, pending: &Pending) -> HashMap<IpAddr, Fault> {
        let mut waiting: Vec<Place> =
            pending.iter().map(|(_, place)| *place).filter(|place| place.address.is_ipv6()).collect();
        let mut failed = HashMap::new();
        let end = Instant::now() + SETTLING;
        while !waiting.is_empty() {
            sleep(LOOK).await;
            waiting.retain(|place| match kernel::look(&self.route, place) {
                Ok(present) if present.duplicate => {
                    failed.insert(place.address, conflict(place.address, None));
                    false
                }
                Ok(present) => present.tentative,
                // With a lifetime the kernel deletes what has failed.
                Err(Errno::EADDRNOTAVAIL) => {
                    failed.insert(place.address, conflict(place.address, None));
                    false
                }
                Err(errno) => {
                    failed.insert(place.address, fault::of_address("RTM_GETADDR", place.address, errno));
                    false
                }
            });
            if Instant::now() >= end {
                let late = |place: &Place| {
                    let message = format!("{} is tentative still", place.address);
                    let fault = Fault::new(FaultCode::Tentative, &message);
                    (place.address, fault.remedy("see whether its interface has a carrier, and add it again"))
                };
                failed.extend(waiting.drain(..).map(|place| late(&place)));
            }
        }
        self.take_back(pending, &failed);
        failed
    }

    /// Starts what listens at addresses that are there; gives those where something cannot.
    fn start_listeners(&self, pending: &Pending) -> HashMap<IpAddr, Fault> {
        let Some(listeners) = self.listeners() else {
            return HashMap::new();
        };
        let start = |place: &Place| Some((place.address, listeners.start(place.address).err()?));
        let failed: HashMap<IpAddr, Fault> = pending.iter().filter_map(|(_, place)| start(place)).collect();
        if !failed.is_empty() {
            listeners.stop(&failed.keys().copied().collect::<Vec<_>>());
            self.take_back(pending, &failed);
        }
        failed
    }

    /// Takes addresses off their interfaces again that were just put there and failed since.
    fn take_back(&self, pending: &Pending, failed: &HashMap<IpAddr, Fault>) {
        let places = pending.iter().map(|(_, place)| *place);
        let places: Vec<Place> = places.filter(|place| failed.contains_key(&place.address)).collect();
        if !places.is_empty() {
            let _what_is_gone_by_itself_is_no_failure = kernel::remove(&self.route, &places);
            self.unfence(places.iter().map(|place| place.address));
        }
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

    fn hold(&self, place: &Place, deadline: BootTime) -> Option<address::Lease> {
        let mut table = self.table.borrow_mut();
        let lease = table.get_mut(place.address)?;
        lease.state = State::Held;
        lease.deadline = Some(deadline);
        Some(lease.told(BootTime::now()))
    }
}

enum Begun {
    New(Place),
    Again(address::Lease),
}

fn gone(address: IpAddr) -> Fault {
    Fault::new(FaultCode::NotFound, &format!("{address} is gone"))
}

fn is_down(interface: &str) -> Fault {
    Fault::new(FaultCode::Os, &format!("the interface {interface:?} is down"))
        .about("RTM_GETLINK")
        .errno(libc::ENETDOWN)
        .remedy("set it up first")
}

fn conflict(address: IpAddr, rival: Option<super::frame::Hardware>) -> Fault {
    let rival = rival.map(hardware_text);
    let who = rival.as_ref().map_or_else(|| "another host".to_owned(), |rival| format!("the host {rival}"));
    Fault::new(FaultCode::Conflict, &format!("{who} has {address}"))
        .about(rival.as_deref().unwrap_or_default())
        .remedy("have that host give it up")
}
