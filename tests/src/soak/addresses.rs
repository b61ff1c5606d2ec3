//! A peer that holds addresses: adds them, renews some, lets some lapse, gives some back.
//!
//! What it was granted is on this host, and what it gave back is not, as any program here can see by binding a socket.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use portreeve_protocol::address::{
    AddAddress, Announce, Lease, Leases, ListAddresses, RemoveAddress, RenewAddress,
};
use portreeve_protocol::message::{Operation, Outcome};
use portreeve_protocol::{Fault, FaultCode, List};

use super::actor::Actor;
use super::ledger::{Known, Ledger};
use super::session::{Lost, Session};
use crate::random::Random;

/// The longest lease that is asked for, in seconds.
const LONGEST: u64 = 6;
/// As many addresses as a peer of this kind asks for, of each family.
const EACH: u64 = 40;

/// The peer.
pub struct Addresses {
    random: Random,
    user: u32,
    range: u8,
    session: Option<Session>,
}

impl Addresses {
    /// One that is this user and asks for the addresses of this range.
    pub fn new(random: Random, user: u32, range: u8) -> Self {
        Self { random, user, range, session: None }
    }

    fn any(&mut self, range: u8) -> IpAddr {
        let number = self.random.below(EACH) as u8 + 1;
        match self.random.one_in(3) {
            true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, range.into(), 0, 0, number.into()).into(),
            false => Ipv4Addr::new(10, 2, range, number).into(),
        }
    }

    fn some(&mut self) -> Vec<IpAddr> {
        let many = if self.random.one_in(4) { self.random.below(24) + 1 } else { 1 };
        let mut some: Vec<IpAddr> = (0..many).map(|_| self.any(self.range)).collect();
        some.sort();
        some.dedup();
        some
    }

    fn held(&self, ledger: &Ledger, session: &Session) -> Vec<IpAddr> {
        let mine = |known: &Known| known.granted.is_some() && known.holder == session.name;
        ledger.addresses().iter().filter(|(_, known)| mine(known)).map(|(address, _)| *address).collect()
    }

    fn try_act(&mut self, ledger: &Ledger, session: &mut Session) -> Result<(), Lost> {
        match self.random.below(12) {
            0..3 => {
                let probes = if self.random.one_in(10) { 1 } else { 0 };
                let (lease, announce) = (Some(self.lease()), self.random.one_in(3));
                let some = self.some();
                let addresses = List::first_of(some.clone());
                let add = AddAddress { addresses, lease, epoch: 0, probes, announce };
                self.request(ledger, session, &some, &add, Leases::from)
            }
            3..7 => {
                let some = self.chosen(ledger, session);
                let addresses = List::first_of(some.clone());
                let lease = self.random.one_in(2).then(|| self.lease());
                let renew = RenewAddress { addresses, lease, epoch: 0 };
                self.request(ledger, session, &some, &renew, Leases::from)
            }
            7 => {
                let some = self.chosen(ledger, session);
                let announce = Announce { addresses: List::first_of(some.clone()), epoch: 0 };
                self.request(ledger, session, &some, &announce, Leases::from)
            }
            8 | 9 => {
                let some = self.chosen(ledger, session);
                self.remove(ledger, session, &some)
            }
            10 => self.take(ledger, session),
            _ => session.request(ledger, &ListAddresses { after: None }).map(drop),
        }
    }

    fn lease(&mut self) -> u32 {
        (3 + self.random.below(LONGEST - 2)) as u32
    }

    fn chosen(&mut self, ledger: &Ledger, session: &Session) -> Vec<IpAddr> {
        let held = self.held(ledger, session);
        let many = if self.random.one_in(3) { held.len() } else { 1 };
        let mut some: Vec<IpAddr> = (0..many).filter_map(|_| self.random.pick(&held).copied()).collect();
        some.sort();
        some.dedup();
        some
    }

    /// Asks for something that ends in leases. Until the answer is there nobody knows when they end.
    fn request<T: Operation>(
        &mut self,
        ledger: &Ledger,
        session: &mut Session,
        addresses: &[IpAddr],
        request: &T,
        leases: impl FnOnce(T::Reply) -> Leases,
    ) -> Result<(), Lost> {
        let before: Vec<Option<Known>> = addresses
            .iter()
            .map(|address| {
                let known = Known { holder: session.name.clone(), until: None, granted: None };
                ledger.addresses().insert(*address, known)
            })
            .collect();
        let asked = Instant::now();
        let answer = session.request(ledger, request);
        let longest = Instant::now() + Duration::from_secs(LONGEST);
        let results = match answer {
            Ok(Ok((reply, _))) => leases(reply).results.into_vec(),
            Ok(Err(fault)) => {
                ledger.violation(format_args!("{}: {fault}", T::NAME));
                Vec::new()
            }
            Err(Lost) => {
                self.settle_all(ledger, addresses, longest);
                return Err(Lost);
            }
        };
        for ((address, before), result) in addresses.iter().zip(before).zip(results) {
            match result {
                Outcome::Done(lease) => granted(ledger, session, asked, *address, &lease),
                Outcome::Fault(fault) => refused(ledger, session, *address, before, &fault),
            }
        }
        Ok(())
    }

    fn settle_all(&self, ledger: &Ledger, addresses: &[IpAddr], until: Instant) {
        let mut known = ledger.addresses();
        for address in addresses {
            if let Some(one) = known.get_mut(address) {
                one.until = Some(until);
                one.granted = None;
            }
        }
    }

    fn remove(&mut self, ledger: &Ledger, session: &mut Session, addresses: &[IpAddr]) -> Result<(), Lost> {
        self.settle_all(ledger, addresses, Instant::now() + Duration::from_secs(LONGEST));
        let request = RemoveAddress { addresses: List::first_of(addresses.to_vec()), epoch: 0 };
        let reply = match session.request(ledger, &request)? {
            Ok((reply, _)) => reply,
            Err(fault) => {
                ledger.violation(format_args!("remove-address: {fault}"));
                return Ok(());
            }
        };
        for (address, result) in addresses.iter().zip(reply.results.into_vec()) {
            match result {
                Outcome::Done(gone) if gone.verified && is_local(*address) => {
                    ledger.violation(format_args!("{address} was removed and is there"));
                }
                Outcome::Done(gone) if gone.verified => ledger.count("addresses removed"),
                Outcome::Done(_) => ledger.violation(format_args!("{address} was removed, and not verified")),
                // Its lease ended first.
                Outcome::Fault(fault) if matches!(fault.code, FaultCode::NotFound | FaultCode::Expired) => {}
                Outcome::Fault(fault) => ledger.violation(format_args!("remove-address: {fault}")),
            }
            if let Some(known) = ledger.addresses().get_mut(address) {
                known.until = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Tries what is another's: it must not be had.
    fn take(&mut self, ledger: &Ledger, session: &mut Session) -> Result<(), Lost> {
        let theirs = self.any(if self.range == 1 { 2 } else { 1 });
        let addresses = List::first_of([theirs]);
        match session.request(ledger, &RemoveAddress { addresses, epoch: 0 })? {
            Ok((reply, _)) => match reply.results.first() {
                Some(Outcome::Fault(_)) => ledger.count("addresses of others that were not had"),
                other => ledger.violation(format_args!("{} removed {theirs}: {other:?}", session.name)),
            },
            Err(fault) => ledger.violation(format_args!("remove-address: {fault}")),
        }
        Ok(())
    }
}

/// Whether this host has the address, as bind(2) tells.
fn is_local(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::AddrNotAvailable,
    }
}

/// The lease began between the request and the reading of its answer.
fn granted(ledger: &Ledger, session: &Session, asked: Instant, address: IpAddr, lease: &Lease) {
    let left = Duration::from_millis(lease.left_ms);
    let before = ledger.broker_ends.now();
    let known = Known {
        holder: session.name.clone(),
        until: Some(Instant::now() + left),
        granted: (session.generation == ledger.generation()).then_some(asked + left),
    };
    ledger.addresses().insert(address, known);
    let local = is_local(address);
    // Where the lease is over, or the broker went meanwhile, that says nothing.
    if !local && !ledger.broker_ends.since(before) && Instant::now() < asked + left {
        ledger.violation(format_args!("{} was granted {address}, which is not there", session.name));
    }
    ledger.count("leases granted");
}

fn refused(ledger: &Ledger, session: &Session, address: IpAddr, before: Option<Known>, fault: &Fault) {
    let over = Instant::now() + Duration::from_secs(LONGEST);
    let known = before.unwrap_or_else(|| Known { holder: session.name.clone(), until: None, granted: None });
    let until = Some(known.until.unwrap_or(over));
    // The kernel's clock ends a lifetime a fiftieth of a second before its time.
    let ends_now = known.granted.is_some_and(|end| end < Instant::now() + Duration::from_millis(100));
    ledger.addresses().insert(address, Known { until, granted: None, ..known });
    match fault.code {
        FaultCode::Expired | FaultCode::NotFound => ledger.count("leases that had ended"),
        FaultCode::NotLocal if ends_now => ledger.count("leases that had ended"),
        FaultCode::Busy => ledger.count("addresses that were busy"),
        _ => ledger.violation(format_args!("{} was refused {address}: {fault}", session.name)),
    }
}

impl Actor for Addresses {
    fn act(&mut self, ledger: &Ledger) {
        self.session = match self.session.take() {
            None => Session::open(ledger, self.user).ok(),
            // Its addresses are the user's and not the session's.
            Some(_) if self.random.one_in(100) => None,
            Some(mut session) => self.try_act(ledger, &mut session).ok().map(|()| session),
        };
    }

    fn give_back(&mut self, ledger: &Ledger) {
        // Half of them by their lease.
        if let Some(mut session) = self.session.take() {
            let mut held = self.held(ledger, &session);
            held.retain(|_| self.random.one_in(2));
            let _they_end_by_themselves = self.remove(ledger, &mut session, &held);
        }
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(if self.session.is_none() { 50 } else { self.random.below(40) })
    }
}
