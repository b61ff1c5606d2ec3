//! AddAddress, RenewAddress, Announce and ListAddresses: policy decides each address and where it is added; the address
//! manager does the rest.

use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use portreeve_protocol::address::{
    ADDRESS_PAGE, AddAddress, AddressPage, AddressRow, Announce, Lease, LeaseTimes, Leases, ListAddresses,
    MAX_ADDRESSES, PageTimes, RenewAddress,
};
use portreeve_protocol::message::{Features, Outcome};
use portreeve_protocol::{Fault, FaultCode, List, Text, Trailing};

use super::Done;
use super::handler::{Deferred, Handler, Immediate, Part};
use super::listen::{MAX_WHOLE_FAULTS, shortened};
use crate::address::{AddParams, AddSpec, Addresses, LeaseEnd, Limit};
use crate::holder::Holder;
use crate::policy::{Denied, LeasePermit, OperationPermit, Permit, Place, Policy, Requester, Rule};
use crate::server::session::Session;
use crate::server::state::Broker;
use crate::sys::BootTime;

/// The shortest lease in seconds: under load, a client could not renew a shorter one in time.
const MIN_LEASE: u32 = 3;
const MAX_LEASE: Duration = Duration::from_secs(86_400);

/// The permits of the addresses of a request, in its order.
pub(super) type LeasePermits = Vec<Result<LeasePermit, Denied>>;

/// Decides each address of a request.
pub(super) fn decide_each(
    policy: &Policy,
    requester: &Requester,
    addresses: &[IpAddr],
    lease: Option<u32>,
) -> LeasePermits {
    addresses.iter().map(|address| policy.lease(requester, *address, lease)).collect()
}

/// Writes the arguments of a request about addresses.
pub(super) fn arguments(out: &mut fmt::Formatter<'_>, addresses: &[IpAddr], epoch: u64) -> fmt::Result {
    addresses.iter().try_for_each(|address| write!(out, "{address} "))?;
    write!(out, "epoch {epoch}")
}

/// The result of each address of a request.
pub(super) fn parts<T>(results: &[Outcome<T>]) -> Option<Vec<Part<'_>>> {
    Some(results.iter().map(Part::from).collect())
}

/// Permission to add addresses.
pub struct AddPermit {
    addresses: LeasePermits,
    /// Whether the peer may have the settings of the cluster, as its coordinator may.
    is_coordinator: bool,
}

impl Permit for AddPermit {
    fn for_each_rule(&self, visit: &mut dyn FnMut(&Rule)) {
        self.addresses.for_each_rule(visit);
    }
}

impl Handler for AddAddress {
    const CHANGES_STATE: bool = true;
    type Permit = AddPermit;

    fn decide(&self, policy: &Policy, requester: &Requester) -> Result<AddPermit, Fault> {
        Ok(AddPermit {
            addresses: decide_each(policy, requester, &self.addresses, self.lease),
            is_coordinator: policy.operation(requester, "cluster").is_ok(),
        })
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        arguments(out, &self.addresses, self.epoch)
    }

    fn parts<'r>(&self, reply: &'r Leases) -> Option<Vec<Part<'r>>> {
        parts(&reply.results)
    }
}

impl Deferred for AddAddress {
    async fn act(
        self: Rc<Self>,
        permit: Rc<AddPermit>,
        broker: Rc<Broker>,
        session: Rc<Session>,
    ) -> Result<Leases, Fault> {
        let addresses = manager(&broker)?;
        let end = lease_end(addresses, self.lease, self.until.0)?;
        let leaders = each_allowed(&permit.addresses, |permit| spec(permit.address, &permit.place, None));
        let followers = permit.addresses.iter().flatten().flat_map(|permit| {
            permit.followers.iter().map(|(follower, place)| spec(*follower, place, Some(permit.address)))
        });
        let specs = with_followers(leaders, followers.collect())?;
        let holder = session.holder();
        let is_coordinator = permit.is_coordinator;
        let max = broker.accounts.quotas().addresses_of(holder, is_coordinator);
        let params = AddParams {
            holder,
            end,
            limit: Limit { max, is_coordinator },
            epoch: self.epoch,
            probes: self.probes,
            announce: self.announce,
        };
        let outcomes = addresses.add(specs, params).await;
        Ok(leases(addresses, &session, outcomes))
    }
}

impl Handler for RenewAddress {
    /// A renewal does not count as a change of state.
    const CHANGES_STATE: bool = false;
    const FREQUENT: bool = true;
    type Permit = LeasePermits;

    fn decide(&self, policy: &Policy, requester: &Requester) -> Result<LeasePermits, Fault> {
        Ok(decide_each(policy, requester, &self.addresses, self.lease))
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        arguments(out, &self.addresses, self.epoch)
    }

    fn parts<'r>(&self, reply: &'r Leases) -> Option<Vec<Part<'r>>> {
        parts(&reply.results)
    }
}

impl Immediate for RenewAddress {
    fn act(&self, permits: &LeasePermits, broker: &Broker, session: &Session) -> Result<Done<Leases>, Fault> {
        let addresses = manager(broker)?;
        let end = match (self.lease, self.until.0) {
            (None, None) => None,
            (lease, until) => Some(lease_end(addresses, lease, until)?),
        };
        let renewed = with_held_followers(permits, addresses, session.holder())?;
        let outcomes = addresses.renew(&renewed, session.holder(), end, self.epoch);
        Ok(Done::new(leases(addresses, session, outcomes)))
    }
}

impl Handler for Announce {
    const CHANGES_STATE: bool = true;
    type Permit = LeasePermits;

    fn decide(&self, policy: &Policy, requester: &Requester) -> Result<LeasePermits, Fault> {
        Ok(decide_each(policy, requester, &self.addresses, None))
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        arguments(out, &self.addresses, self.epoch)
    }

    fn parts<'r>(&self, reply: &'r Leases) -> Option<Vec<Part<'r>>> {
        parts(&reply.results)
    }
}

impl Immediate for Announce {
    fn act(&self, permits: &LeasePermits, broker: &Broker, session: &Session) -> Result<Done<Leases>, Fault> {
        let addresses = manager(broker)?;
        let announced = with_held_followers(permits, addresses, session.holder())?;
        let outcomes = addresses.announce_again(&announced, session.holder(), self.epoch);
        Ok(Done::new(leases(addresses, session, outcomes)))
    }
}

impl Handler for ListAddresses {
    const CHANGES_STATE: bool = false;
    const FREQUENT: bool = true;
    type Permit = OperationPermit;

    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.after.iter().try_for_each(|address| write!(out, "after {address}"))
    }
}

impl Immediate for ListAddresses {
    fn act(
        &self,
        _: &OperationPermit,
        broker: &Broker,
        session: &Session,
    ) -> Result<Done<AddressPage>, Fault> {
        let addresses = manager(broker)?;
        let now = BootTime::now();
        let (page, deadlines) = addresses.leases_after(self.after, |rest| {
            let mut rows = rest.map(|lease| {
                let row = AddressRow {
                    lease: lease.to_wire(now),
                    holder: Text::truncated(&lease.holder.to_string()),
                    present: lease.is_held(),
                };
                (row, lease.deadline_ns())
            });
            let (page, deadlines): (Vec<AddressRow>, Vec<u64>) = rows.by_ref().take(ADDRESS_PAGE).unzip();
            let more = rows.next().is_some();
            let times = Trailing(None);
            (AddressPage { fenced: false, addresses: List::truncated(page), more, times }, deadlines)
        });
        let times = session.has_feature(Features::LEASE_TIMES).then(|| PageTimes {
            leases: LeaseTimes { now: now.as_nanos(), deadlines: List::truncated(deadlines) },
            bounds: addresses.bounds(),
        });
        let held = page.addresses.iter().filter(|row| row.present).map(|row| row.lease.address);
        let held: Vec<IpAddr> = held.collect();
        let page = AddressPage { fenced: addresses.are_fenced(&held), times: Trailing(times), ..page };
        Ok(Done::new(page))
    }
}

/// The address manager, if the configuration and the capabilities let the broker have one.
pub(super) fn manager(broker: &Broker) -> Result<&Rc<Addresses>, Fault> {
    broker.addresses.as_ref().ok_or_else(|| {
        Fault::new(FaultCode::NotRetained, "this broker manages no addresses and no interfaces")
            .subject("cap_net_admin")
            .remedy("permit an address or an interface, and add cap_net_admin+ep to capabilities")
    })
}

/// The end of a lease from the two ways to request it.
pub(super) fn lease_end(
    addresses: &Addresses,
    lease: Option<u32>,
    until: Option<u64>,
) -> Result<LeaseEnd, Fault> {
    match (lease, until) {
        (Some(_), Some(_)) => {
            Err(Fault::new(FaultCode::Invalid, "the request has both a lease and the end of the lease")
                .subject("until")
                .remedy("give only one of them"))
        }
        (None, Some(until)) => {
            let (now, until) = (BootTime::now(), BootTime::from_nanos(until));
            if now.duration_until(until) > MAX_LEASE {
                let message = format!("the end of the lease is more than {} s away", MAX_LEASE.as_secs());
                return Err(Fault::new(FaultCode::Invalid, &message).subject("until").remedy(
                    "give an earlier time of CLOCK_BOOTTIME, in nanoseconds; a process in another time namespace has \
                     another clock",
                ));
            }
            Ok(LeaseEnd::At(until))
        }
        (lease, None) => {
            check_lease(lease)?;
            Ok(addresses.lease_of(lease))
        }
    }
}

fn check_lease(lease: Option<u32>) -> Result<(), Fault> {
    let max = MAX_LEASE.as_secs();
    match lease {
        // Permanent, which policy decides.
        Some(0) => Ok(()),
        Some(seconds) if seconds < MIN_LEASE || u64::from(seconds) > max => {
            let message = format!("lease must be {MIN_LEASE} to {max} s");
            Err(Fault::new(FaultCode::Unsupported, &message).subject(&format!("{seconds} s")))
        }
        _ => Ok(()),
    }
}

/// Converts the outcomes to the reply, with the deadlines if the session has them.
pub(super) fn leases(
    addresses: &Addresses,
    session: &Session,
    outcomes: Vec<Result<Lease, Fault>>,
) -> Leases {
    let times = session.has_feature(Features::LEASE_TIMES).then(|| {
        let deadline = |outcome: &Result<Lease, Fault>| {
            outcome.as_ref().map_or(0, |lease| addresses.deadline_ns(lease.address))
        };
        let deadlines = List::truncated(outcomes.iter().map(deadline));
        LeaseTimes { now: BootTime::now().as_nanos(), deadlines }
    });
    Leases { results: results(session, outcomes), times: Trailing(times) }
}

/// The specification of one address for the address manager.
fn spec(address: IpAddr, place: &Place, follows: Option<IpAddr>) -> AddSpec {
    AddSpec { address, interface: place.interface.clone(), prefix: place.prefix, follows }
}

/// A value for each permit; the fault of each denial.
fn each_allowed<T>(permits: &LeasePermits, value: impl Fn(&LeasePermit) -> T) -> Vec<Result<T, Fault>> {
    let each = permits.iter().map(|permit| permit.as_ref().map(&value).map_err(Denied::fault));
    each.collect()
}

/// The addresses of a request and, after them, their followers.
pub(super) fn with_followers<T>(
    mut requested: Vec<Result<T, Fault>>,
    followers: Vec<T>,
) -> Result<Vec<Result<T, Fault>>, Fault> {
    let count = requested.len() + followers.len();
    if count > MAX_ADDRESSES {
        let message = format!("with their followers these are {count} addresses, more than {MAX_ADDRESSES}");
        return Err(Fault::new(FaultCode::Unsupported, &message).remedy("request fewer addresses at once"));
    }
    requested.extend(followers.into_iter().map(Ok));
    Ok(requested)
}

/// The allowed addresses of a request and the followers that the broker added with them for the same holder. Every renewal
/// needs a permit, so that the lease expires after a reload removes the permit.
fn with_held_followers(
    permits: &LeasePermits,
    addresses: &Addresses,
    holder: Holder,
) -> Result<Vec<Result<IpAddr, Fault>>, Fault> {
    let allowed = each_allowed(permits, |permit| permit.address);
    let followers_of = |address: &IpAddr| addresses.followers_of(*address, holder);
    let followers = allowed.iter().flatten().flat_map(followers_of).collect();
    with_followers(allowed, followers)
}

/// Converts the outcomes to the wire message.
pub(super) fn results<T, const MAX: usize>(
    session: &Session,
    outcomes: Vec<Result<T, Fault>>,
) -> List<Outcome<T>, MAX> {
    let refused = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    session.note_refusals(refused);
    let brief = refused > MAX_WHOLE_FAULTS;
    List::truncated(outcomes.into_iter().map(|outcome| match outcome {
        Ok(done) => Outcome::Done(done),
        Err(fault) if brief => Outcome::Fault(shortened(&fault)),
        Err(fault) => Outcome::Fault(fault),
    }))
}
