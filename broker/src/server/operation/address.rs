//! Add, renew, announce, list: policy permits each address and says where it goes; the rest is the addresses'.

use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::address::{
    ADDRESS_PAGE, AddAddress, AddressPage, AddressRow, Announce, Leases, ListAddresses, MAX_ADDRESSES,
    RenewAddress,
};
use portreeve_protocol::message::{Operation, Outcome};
use portreeve_protocol::{Fault, FaultCode, List, Text};

use super::Done;
use super::audit::Arguments;
use super::listen::{WHOLE_FAULTS, shortened};
use crate::address::{AddParams, AddSpec, Addresses};
use crate::policy::{Policy, Requester, Rule};
use crate::server::session::Session;
use crate::server::state::Broker;
use crate::sys::BootTime;

/// The least seconds of a lease: below that a moment's load would end it.
const SHORTEST: u32 = 3;
const LONGEST: u32 = 86_400;

pub(super) fn words(out: &mut fmt::Formatter<'_>, addresses: &[IpAddr], epoch: u64) -> fmt::Result {
    write!(out, "epoch {epoch}:")?;
    addresses.iter().try_for_each(|address| write!(out, " {address}"))
}

fn each<T>(results: &[Outcome<T>], count: impl Fn(Option<FaultCode>)) {
    results.iter().for_each(|result| count(result.fault().map(|fault| fault.code)));
}

fn rules(addresses: &[IpAddr], policy: &Policy, who: &Requester, tell: &mut dyn FnMut(&Rule)) {
    let permits = addresses.iter().filter_map(|address| policy.address(who, *address).ok());
    permits.for_each(|permit| tell(permit.rule));
}

impl Arguments for AddAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        words(out, &self.addresses, self.epoch)
    }

    fn rules(&self, policy: &Policy, who: &Requester, tell: &mut dyn FnMut(&Rule)) {
        rules(&self.addresses, policy, who, tell);
    }

    fn count(reply: &Leases, count: impl Fn(Option<FaultCode>)) {
        each(&reply.results, count);
    }
}

impl Arguments for RenewAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        words(out, &self.addresses, self.epoch)
    }

    fn rules(&self, policy: &Policy, who: &Requester, tell: &mut dyn FnMut(&Rule)) {
        rules(&self.addresses, policy, who, tell);
    }

    fn count(reply: &Leases, count: impl Fn(Option<FaultCode>)) {
        each(&reply.results, count);
    }
}

impl Arguments for Announce {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        words(out, &self.addresses, self.epoch)
    }

    fn rules(&self, policy: &Policy, who: &Requester, tell: &mut dyn FnMut(&Rule)) {
        rules(&self.addresses, policy, who, tell);
    }

    fn count(reply: &Leases, count: impl Fn(Option<FaultCode>)) {
        each(&reply.results, count);
    }
}

impl Arguments for ListAddresses {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.after.iter().try_for_each(|address| write!(out, "after {address}"))
    }
}

pub async fn add(broker: Rc<Broker>, session: Rc<Session>, request: Rc<AddAddress>) -> Result<Leases, Fault> {
    let addresses = of(&broker)?;
    lease_in_bounds(request.lease)?;
    let asked = request.addresses.iter().map(|address| permitted(&broker, &session, *address, request.lease));
    let asked = with_followers(asked.collect(), |asked: &AddSpec| {
        let policy = broker.policy.borrow();
        let follow = |own: &IpAddr| asked_for(&policy, *own, Some(asked.address));
        policy.followers(asked.address).iter().filter_map(follow).collect()
    })?;
    let params = AddParams {
        holder: session.holder(),
        lifetime: addresses.lifetime(request.lease),
        max_addresses: usize::try_from(broker.accounts.quotas().addresses).unwrap_or(usize::MAX),
        epoch: request.epoch,
        probes: request.probes,
        announce: request.announce,
    };
    Ok(Leases { results: results(&session, &*request, addresses.add(asked, params).await) })
}

pub fn renew(broker: &Broker, session: &Session, request: &RenewAddress) -> Result<Done<Leases>, Fault> {
    lease_in_bounds(request.lease)?;
    let asked = all_permitted(broker, session, &request.addresses, request.lease)?;
    let addresses = of(broker)?;
    let lifetime = request.lease.map(|_| addresses.lifetime(request.lease));
    let outcomes = addresses.renew(&asked, Some(session.holder()), lifetime, request.epoch);
    Ok(Done::new(Leases { results: results(session, request, outcomes) }))
}

pub fn announce(broker: &Broker, session: &Session, request: &Announce) -> Result<Done<Leases>, Fault> {
    let asked = all_permitted(broker, session, &request.addresses, None)?;
    let outcomes = of(broker)?.announce_again(&asked, Some(session.holder()), request.epoch);
    Ok(Done::new(Leases { results: results(session, request, outcomes) }))
}

pub fn list(broker: &Broker, _: &Session, request: &ListAddresses) -> Result<Done<AddressPage>, Fault> {
    let addresses = of(broker)?;
    let now = BootTime::now();
    let page = addresses.leases_after(request.after, |rest| {
        let mut rows = rest.map(|lease| AddressRow {
            lease: lease.to_wire(now),
            holder: Text::clipped(&lease.holder.to_string()),
            present: lease.is_held(),
        });
        let page: Vec<AddressRow> = rows.by_ref().take(ADDRESS_PAGE).collect();
        AddressPage {
            fenced: addresses.is_fenced(),
            addresses: List::first_of(page),
            more: rows.next().is_some(),
        }
    });
    Ok(Done::new(page))
}

/// The addresses, where the configuration and the capabilities let the broker have any.
pub fn of(broker: &Broker) -> Result<&Rc<Addresses>, Fault> {
    broker.addresses.as_ref().ok_or_else(|| {
        Fault::new(FaultCode::NotRetained, "this broker has no addresses and changes no interface")
            .about("cap_net_admin")
            .remedy("permit an address or an interface, and add cap_net_admin+ep to capabilities")
    })
}

fn lease_in_bounds(lease: Option<u32>) -> Result<(), Fault> {
    match lease {
        // For ever; policy has a word about that.
        Some(0) => Ok(()),
        Some(seconds) if !(SHORTEST..=LONGEST).contains(&seconds) => {
            let message = format!("a lease of {seconds} s is not from {SHORTEST} to {LONGEST} s");
            Err(Fault::new(FaultCode::Unsupported, &message).remedy("ask for one that is"))
        }
        _ => Ok(()),
    }
}

pub(super) fn permitted(
    broker: &Broker,
    session: &Session,
    address: IpAddr,
    lease: Option<u32>,
) -> Result<AddSpec, Fault> {
    let policy = broker.policy.borrow();
    let permit = policy.address(&session.requester, address).map_err(|denied| denied.fault())?;
    if lease == Some(0) {
        policy.permanent(&session.requester, address).map_err(|denied| denied.fault())?;
    }
    asked_for(&policy, address, None).ok_or_else(|| {
        Fault::new(FaultCode::Denied, &format!("{address} is in no topology block"))
            .about(&permit.rule.to_string())
            .remedy("add a topology scope that holds it to the cluster scope")
    })
}

/// An address where the topology puts it.
fn asked_for(policy: &Policy, address: IpAddr, follows: Option<IpAddr>) -> Option<AddSpec> {
    let (interface, prefix) = policy.place(address)?;
    Some(AddSpec { address, interface: Text::clipped(interface), prefix, follows })
}

/// What is asked for and, after that, what follows it.
pub(super) fn with_followers<T>(
    mut asked: Vec<Result<T, Fault>>,
    followers: impl Fn(&T) -> Vec<T>,
) -> Result<Vec<Result<T, Fault>>, Fault> {
    let more: Vec<T> = asked.iter().filter_map(|one| one.as_ref().ok()).flat_map(followers).collect();
    let count = asked.len() + more.len();
    if count > MAX_ADDRESSES {
        let message = format!("with those that follow them they are {count} addresses");
        return Err(Fault::new(FaultCode::Unsupported, &message)
            .remedy(&format!("ask for fewer at once: {MAX_ADDRESSES} with their followers")));
    }
    asked.extend(more.into_iter().map(Ok));
    Ok(asked)
}

/// A permit that a reload took away is needed for whatever keeps an address.
fn all_permitted(
    broker: &Broker,
    session: &Session,
    addresses: &[IpAddr],
    lease: Option<u32>,
) -> Result<Vec<Result<IpAddr, Fault>>, Fault> {
    let permitted = |address: &IpAddr| permitted(broker, session, *address, lease).map(|asked| asked.address);
    let held = of(broker)?;
    with_followers(addresses.iter().map(permitted).collect(), |address| held.followers_of(*address))
}

/// The outcomes as they go on the wire. What was refused has an audit line of its own, as if it had been asked for
/// alone.
pub(super) fn results<O: Operation, T, const MAX: usize>(
    session: &Session,
    _: &O,
    outcomes: Vec<Result<T, Fault>>,
) -> List<Outcome<T>, MAX> {
    let mut refused = 0;
    for fault in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        refused += 1;
        if session.account.may_log() {
            let (peer, code) = (&session.requester, fault.code.word());
            let (session, why, about, errno) =
                (session.number, &*fault.message, &*fault.subject, fault.errno);
            tracing::warn!(target: "audit", session, %peer, operation = O::NAME, code, why, about, errno, "refused");
        }
    }
    session.note_refusals(refused);
    let brief = refused > WHOLE_FAULTS;
    List::first_of(outcomes.into_iter().map(|outcome| match outcome {
        Ok(done) => Outcome::Done(done),
        Err(fault) if brief => Outcome::Fault(shortened(&fault)),
        Err(fault) => Outcome::Fault(fault),
    }))
}
