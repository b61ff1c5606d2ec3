//! A peer that adds addresses, renews some, lets the leases of some expire, and removes some.
//!
//! It checks by bind(2) that the host has an address once the broker has granted it, and no longer once it is removed.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use portreeve_protocol::address::{
    AddAddress, Announce, Lease, Leases, ListAddresses, RemoveAddress, RenewAddress,
};
use portreeve_protocol::message::{Operation, Outcome};
use portreeve_protocol::{Fault, FaultCode, List};

use super::actor::Actor;
use super::disruption::Mark;
use super::model::{AddressRecord, Model};
use super::session::{Session, SessionLost};
use crate::random::Random;

/// The longest lease that it requests, in seconds.
const MAX_LEASE: u64 = 6;
/// How many different addresses it requests of each family.
const ADDRESSES_PER_FAMILY: u64 = 40;

/// See the module.
pub struct AddressPeer {
    random: Random,
    user: u32,
    range: u8,
    session: Option<Session>,
}

impl AddressPeer {
    /// A peer with this user id, which requests the addresses of this range.
    pub fn new(random: Random, user: u32, range: u8) -> Self {
        Self { random, user, range, session: None }
    }

    fn random_address(&mut self, range: u8) -> IpAddr {
        let number = self.random.below(ADDRESSES_PER_FAMILY) as u8 + 1;
        match self.random.one_in(3) {
            true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, range.into(), 0, 0, number.into()).into(),
            false => Ipv4Addr::new(10, 2, range, number).into(),
        }
    }

    fn random_addresses(&mut self) -> Vec<IpAddr> {
        let many = if self.random.one_in(4) { self.random.below(24) + 1 } else { 1 };
        let mut some: Vec<IpAddr> = (0..many).map(|_| self.random_address(self.range)).collect();
        some.sort();
        some.dedup();
        some
    }

    fn held(&self, model: &Model, session: &Session) -> Vec<IpAddr> {
        let mine = |known: &AddressRecord| known.earliest_end.is_some() && known.holder == session.name;
        model.addresses().iter().filter(|(_, known)| mine(known)).map(|(address, _)| *address).collect()
    }

    fn try_step(&mut self, model: &Model, session: &mut Session) -> Result<(), SessionLost> {
        match self.random.below(12) {
            0..3 => {
                let probes = if self.random.one_in(10) { 1 } else { 0 };
                let (lease, announce) = (Some(self.lease()), self.random.one_in(3));
                let some = self.random_addresses();
                let addresses = List::truncated(some.clone());
                let add =
                    AddAddress { addresses, lease, epoch: 0, probes, announce, ..AddAddress::default() };
                self.request(model, session, &some, &add, Leases::from)
            }
            3..7 => {
                let some = self.random_held(model, session);
                let addresses = List::truncated(some.clone());
                let lease = self.random.one_in(2).then(|| self.lease());
                let renew = RenewAddress { addresses, lease, epoch: 0, ..RenewAddress::default() };
                self.request(model, session, &some, &renew, Leases::from)
            }
            7 => {
                let some = self.random_held(model, session);
                let announce = Announce { addresses: List::truncated(some.clone()), epoch: 0 };
                self.request(model, session, &some, &announce, Leases::from)
            }
            8 | 9 => {
                let some = self.random_held(model, session);
                self.remove(model, session, &some)
            }
            10 => self.remove_foreign(model, session),
            _ => session.request(model, &ListAddresses { after: None }).map(drop),
        }
    }

    fn lease(&mut self) -> u32 {
        (3 + self.random.below(MAX_LEASE - 2)) as u32
    }

    fn random_held(&mut self, model: &Model, session: &Session) -> Vec<IpAddr> {
        let held = self.held(model, session);
        let many = if self.random.one_in(3) { held.len() } else { 1 };
        let mut some: Vec<IpAddr> = (0..many).filter_map(|_| self.random.pick(&held).copied()).collect();
        some.sort();
        some.dedup();
        some
    }

    /// Sends a request that returns leases. While it is in flight, the ends of the leases are unknown.
    fn request<T: Operation>(
        &mut self,
        model: &Model,
        session: &mut Session,
        addresses: &[IpAddr],
        request: &T,
        leases: impl FnOnce(T::Reply) -> Leases,
    ) -> Result<(), SessionLost> {
        let before: Vec<Option<AddressRecord>> = addresses
            .iter()
            .map(|address| {
                let known =
                    AddressRecord { holder: session.name.clone(), latest_end: None, earliest_end: None };
                model.addresses().insert(*address, known)
            })
            .collect();
        let (requested_at, undisturbed) = (Instant::now(), model.broker_down.mark());
        let answer = session.request(model, request);
        let longest = Instant::now() + Duration::from_secs(MAX_LEASE);
        let results = match answer {
            Ok(Ok((reply, _))) => leases(reply).results.into_vec(),
            Ok(Err(fault)) => {
                model.violation(format_args!("{}: {fault}", T::NAME));
                Vec::new()
            }
            Err(SessionLost) => {
                self.mark_ending(model, addresses, longest);
                return Err(SessionLost);
            }
        };
        for ((address, before), result) in addresses.iter().zip(before).zip(results) {
            match result {
                Outcome::Done(lease) => {
                    record_granted(model, session, (requested_at, undisturbed), *address, &lease);
                }
                Outcome::Fault(fault) => record_refused(model, session, *address, before, &fault),
            }
        }
        Ok(())
    }

    fn mark_ending(&self, model: &Model, addresses: &[IpAddr], until: Instant) {
        let mut known = model.addresses();
        for address in addresses {
            if let Some(one) = known.get_mut(address) {
                one.latest_end = Some(until);
                one.earliest_end = None;
            }
        }
    }

    fn remove(
        &mut self,
        model: &Model,
        session: &mut Session,
        addresses: &[IpAddr],
    ) -> Result<(), SessionLost> {
        self.mark_ending(model, addresses, Instant::now() + Duration::from_secs(MAX_LEASE));
        let request = RemoveAddress { addresses: List::truncated(addresses.to_vec()), epoch: 0 };
        let reply = match session.request(model, &request)? {
            Ok((reply, _)) => reply,
            Err(fault) => {
                model.violation(format_args!("remove-address: {fault}"));
                return Ok(());
            }
        };
        for (address, result) in addresses.iter().zip(reply.results.into_vec()) {
            match result {
                Outcome::Done(removed) if removed.verified && is_local(*address) => {
                    model.violation(format_args!("{address} was removed, but the host still has it"));
                }
                Outcome::Done(removed) if removed.verified => model.count("addresses removed"),
                Outcome::Done(_) => {
                    model.violation(format_args!("{address} was removed without verification"))
                }
                // Its lease expired first.
                Outcome::Fault(fault) if matches!(fault.code, FaultCode::NotFound | FaultCode::Expired) => {}
                Outcome::Fault(fault) => model.violation(format_args!("remove-address: {fault}")),
            }
            if let Some(known) = model.addresses().get_mut(address) {
                known.latest_end = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Tries to remove another peer's address, which must fail.
    fn remove_foreign(&mut self, model: &Model, session: &mut Session) -> Result<(), SessionLost> {
        let theirs = self.random_address(if self.range == 1 { 2 } else { 1 });
        let addresses = List::truncated([theirs]);
        match session.request(model, &RemoveAddress { addresses, epoch: 0 })? {
            Ok((reply, _)) => match reply.results.first() {
                Some(Outcome::Fault(_)) => model.count("removals of others' addresses refused"),
                other => model
                    .violation(format_args!("{} removed {theirs} of another peer: {other:?}", session.name)),
            },
            Err(fault) => model.violation(format_args!("remove-address: {fault}")),
        }
        Ok(())
    }
}

/// Whether this host has the address, according to bind(2).
fn is_local(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::AddrNotAvailable,
    }
}

/// Records a granted lease, which began between the request and the receipt of the reply.
fn record_granted(
    model: &Model,
    session: &Session,
    (requested_at, undisturbed): (Instant, Mark),
    address: IpAddr,
    lease: &Lease,
) {
    let remaining = Duration::from_millis(lease.remaining_ms);
    let known = AddressRecord {
        holder: session.name.clone(),
        latest_end: Some(Instant::now() + remaining),
        earliest_end: (session.generation == model.generation()).then_some(requested_at + remaining),
    };
    model.addresses().insert(address, known);
    let local = is_local(address);
    // The address may be absent if the lease or the broker has ended since the request.
    if !local && !model.broker_down.occurred_since(undisturbed) && Instant::now() < requested_at + remaining {
        model
            .violation(format_args!("{} was granted {address}, but the host does not have it", session.name));
    }
    model.count("leases granted");
}

fn record_refused(
    model: &Model,
    session: &Session,
    address: IpAddr,
    before: Option<AddressRecord>,
    fault: &Fault,
) {
    let latest = Instant::now() + Duration::from_secs(MAX_LEASE);
    let known = before.unwrap_or_else(|| AddressRecord {
        holder: session.name.clone(),
        latest_end: None,
        earliest_end: None,
    });
    let until = Some(known.latest_end.unwrap_or(latest));
    // The kernel's clock may end a lifetime up to 20 ms early.
    let ends_now = known.earliest_end.is_some_and(|end| end < Instant::now() + Duration::from_millis(100));
    model.addresses().insert(address, AddressRecord { latest_end: until, earliest_end: None, ..known });
    match fault.code {
        FaultCode::Expired | FaultCode::NotFound => model.count("leases already expired"),
        FaultCode::NotLocal if ends_now => model.count("leases already expired"),
        FaultCode::Busy => model.count("busy addresses"),
        _ => model.violation(format_args!("{} was refused {address}: {fault}", session.name)),
    }
}

impl Actor for AddressPeer {
    fn step(&mut self, model: &Model) {
        self.session = match self.session.take() {
            None => Session::open(model, self.user).ok(),
            // Disconnecting keeps the addresses: they belong to the user, not to the session.
            Some(_) if self.random.one_in(100) => None,
            Some(mut session) => self.try_step(model, &mut session).ok().map(|()| session),
        };
    }

    fn release(&mut self, model: &Model) {
        // The leases of the other half expire.
        if let Some(mut session) = self.session.take() {
            let mut held = self.held(model, &session);
            held.retain(|_| self.random.one_in(2));
            let _ = self.remove(model, &mut session, &held); // if this fails, their leases expire
        }
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(if self.session.is_none() { 50 } else { self.random.below(40) })
    }
}
