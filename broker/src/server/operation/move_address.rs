//! MoveAddress: policy decides each address and the interface it moves to; the address manager does the rest.

use std::fmt;
use std::net::IpAddr;

use portreeve_protocol::address::{Leases, MoveAddress};
use portreeve_protocol::{Fault, FaultCode};

use super::Done;
use super::address::{LeasePermits, arguments, decide_each, leases, manager, parts, with_followers};
use super::handler::{Handler, Immediate, Part};
use crate::address::AddSpec;
use crate::policy::{Denied, Destination, LeasePermit, Permit, Policy, Requester, Rule};
use crate::server::session::Session;
use crate::server::state::Broker;

/// Permission to move addresses to an interface.
pub struct MovePermit {
    addresses: LeasePermits,
    destination: Destination,
}

impl Permit for MovePermit {
    fn for_each_rule(&self, visit: &mut dyn FnMut(&Rule)) {
        for permit in self.addresses.iter().flatten() {
            permit.for_each_rule(visit);
            self.destination.interface_rule(permit.address).into_iter().for_each(|rule| visit(rule));
        }
    }
}

impl MovePermit {
    fn spec(&self, address: IpAddr, follows: Option<IpAddr>) -> Result<AddSpec, Fault> {
        let interface = self.destination.interface.clone();
        match self.destination.prefix(address) {
            Some(prefix) => Ok(AddSpec { address, interface, prefix, follows }),
            None => Err(not_allowed_on(address, &interface)),
        }
    }
}

impl Handler for MoveAddress {
    const CHANGES_STATE: bool = true;
    type Permit = MovePermit;

    fn decide(&self, policy: &Policy, requester: &Requester) -> Result<MovePermit, Fault> {
        Ok(MovePermit {
            addresses: decide_each(policy, requester, &self.addresses, None),
            destination: policy.destination(requester, &self.interface),
        })
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        arguments(out, &self.addresses, self.epoch)?;
        write!(out, " to {}", self.interface)
    }

    fn parts<'r>(&self, reply: &'r Leases) -> Option<Vec<Part<'r>>> {
        parts(&reply.results)
    }
}

impl Immediate for MoveAddress {
    fn act(&self, permit: &MovePermit, broker: &Broker, session: &Session) -> Result<Done<Leases>, Fault> {
        let (addresses, holder) = (manager(broker)?, session.holder());
        let spec = |allowed: &Result<LeasePermit, Denied>| {
            let address = allowed.as_ref().map_err(Denied::fault).map(|it| it.address)?;
            // An address is not moved if one of its followers is not allowed on that interface.
            let mut followers = addresses.followers_of(address, holder).into_iter();
            followers.try_for_each(|follower| permit.spec(follower, Some(address)).map(drop))?;
            permit.spec(address, None)
        };
        let leaders: Vec<_> = permit.addresses.iter().map(spec).collect();
        let followers = leaders.iter().flatten().flat_map(|leader| {
            let followers = addresses.followers_of(leader.address, holder).into_iter();
            followers.filter_map(|follower| permit.spec(follower, Some(leader.address)).ok())
        });
        let followers = followers.collect();
        let moved = with_followers(leaders, followers)?;
        let outcomes = addresses.move_to(&moved, holder, self.epoch, self.announce);
        Ok(Done::new(leases(addresses, session, outcomes)))
    }
}

fn not_allowed_on(address: IpAddr, interface: &str) -> Fault {
    let message = format!("no topology block that contains {address} names the interface {interface:?}");
    Fault::new(FaultCode::Denied, &message)
        .remedy("add such a topology scope to the cluster scope, or permit the interface")
}
