//! RemoveAddress: removes addresses, and notifies their holders first if those are other peers. The reply states whether
//! the kernel confirmed each removal.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::address::{Removal, Removals, RemoveAddress};
use portreeve_protocol::{Fault, FaultCode};

use super::address::{arguments, manager, results, with_followers};
use super::handler::{Deferred, Handler};
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
        // User 0 is allowed to remove every address, because it is the operator.
        let required_holder = if session.is_root() { None } else { Some(holder) };
        let check = |address: IpAddr| {
            addresses.check_removable(address, required_holder, self.epoch).map(|()| address)
        };
        let allowed = self.addresses.iter().map(|address| match addresses.leader_of(*address) {
            Some(leader) => Err(follower_fault(*address, leader)),
            None => check(*address),
        });
        let allowed: Vec<_> = allowed.collect();
        let followers =
            allowed.iter().flatten().flat_map(|address| addresses.followers_of(*address)).collect();
        let allowed = with_followers(allowed, followers)?;
        let mut to_remove: Vec<IpAddr> = allowed.iter().filter_map(|address| address.clone().ok()).collect();
        to_remove.sort_unstable();
        to_remove.dedup();
        let has_another_holder =
            |address: &&IpAddr| addresses.holder_of(**address).is_some_and(|other| other != holder);
        let others: Vec<IpAddr> = to_remove.iter().filter(has_another_holder).copied().collect();
        addresses.notify_removal(&others).await;
        let was_released = |address: &IpAddr| addresses.holder_of(*address).is_none();
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
        Ok(Removals { results: results::<Self, _, _>(&session, outcomes.collect()) })
    }
}

fn follower_fault(address: IpAddr, leader: IpAddr) -> Fault {
    Fault::new(FaultCode::Denied, &format!("{address} follows {leader} and is removed only with it"))
        .remedy(&format!("remove {leader}: its followers are included"))
}
