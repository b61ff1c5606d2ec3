//! RemoveAddress: removes addresses, and notifies their holders first if those are other peers. The reply states whether
//! the kernel confirmed each removal.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::address::{Removal, Removals, RemoveAddress};
use portreeve_protocol::{Fault, FaultCode};

use super::address::{arguments, manager, parts, results, with_followers};
use super::handler::{Deferred, Handler, Part};
use crate::holder::Holder;
use crate::policy::{OperationPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::Broker;

impl Handler for RemoveAddress {
    const CHANGES_STATE: bool = true;
    type Permit = OperationPermit;

    /// Which addresses the peer is allowed to remove depends on their holders, not on rules.
    fn decide(&self, _: &Policy, _: &Requester) -> Result<OperationPermit, Fault> {
        Ok(OperationPermit)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        arguments(out, &self.addresses, self.epoch)
    }

    fn parts<'r>(&self, reply: &'r Removals) -> Option<Vec<Part<'r>>> {
        parts(&reply.results)
    }
}

impl Deferred for RemoveAddress {
    async fn act(
        self: Rc<Self>,
        _: Rc<OperationPermit>,
        broker: Rc<Broker>,
        session: Rc<Session>,
    ) -> Result<Removals, Fault> {
        let addresses = manager(&broker)?;
        let holder = session.holder();
        // User 0 is allowed to remove every address, because it is the operator. No other peer learns from the reply
        // whether another one has an address, which epoch it has, or what follows it.
        let check = |address: &IpAddr| {
            addresses.check_removable(*address, holder, session.is_root(), self.epoch)?;
            match addresses.leader_of(*address) {
                Some(leader) => Err(follower_fault(*address, leader)),
                None => Ok(*address),
            }
        };
        let allowed: Vec<Result<IpAddr, Fault>> = self.addresses.iter().map(check).collect();
        let followers = allowed.iter().flatten().flat_map(|address| {
            addresses
                .holder_of(*address)
                .into_iter()
                .flat_map(|owner| addresses.followers_of(*address, owner))
        });
        let followers = followers.collect();
        let allowed = with_followers(allowed, followers)?;
        let mut to_remove: Vec<IpAddr> = allowed.iter().filter_map(|address| address.clone().ok()).collect();
        to_remove.sort_unstable();
        to_remove.dedup();
        let owners: HashMap<IpAddr, Option<Holder>> =
            to_remove.iter().map(|address| (*address, addresses.holder_of(*address))).collect();
        let has_other_owner = |address: &&IpAddr| owners.get(*address) != Some(&Some(holder));
        let others: Vec<IpAddr> = to_remove.iter().filter(has_other_owner).copied().collect();
        // Before the notice, so that nobody gets a released address meanwhile with an epoch that this request ends.
        addresses.remember_removals(&to_remove, holder, self.epoch);
        addresses.notify_removal(&others).await;
        // Another peer may have added a released address meanwhile: that lease is not the one to remove.
        let was_released = |address: &IpAddr| owners.get(address) != Some(&addresses.holder_of(*address));
        let (released, to_remove): (Vec<IpAddr>, Vec<IpAddr>) = to_remove.into_iter().partition(was_released);
        let mut removed: HashMap<IpAddr, Result<Removal, Fault>> =
            to_remove.iter().copied().zip(addresses.remove(&to_remove)).collect();
        removed
            .extend(released.into_iter().map(|address| (address, Ok(Removal { address, verified: false }))));
        addresses.verify_removal(&mut removed).await;
        let outcomes = allowed.into_iter().map(|address| {
            let address = address?;
            removed.get(&address).cloned().unwrap_or_else(|| {
                Err(Fault::new(FaultCode::NotFound, &format!("{address} was removed meanwhile")))
            })
        });
        Ok(Removals { results: results(&session, outcomes.collect()) })
    }
}

fn follower_fault(address: IpAddr, leader: IpAddr) -> Fault {
    Fault::new(FaultCode::Denied, &format!("{address} follows {leader} and is removed only with it"))
        .remedy(&format!("remove {leader}: its followers are included"))
}
