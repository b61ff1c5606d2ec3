//! RemoveAddress: who holds an address is told when somebody else has it removed, and then it goes; the reply says
//! whether it was seen to be gone.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::address::{RemoveAddress, Removed, RemovedMany};
use portreeve_protocol::{Fault, FaultCode};

use super::address::{of, results, with_followers, words};
use super::audit::Arguments;
use crate::server::session::Session;
use crate::server::state::Broker;

impl Arguments for RemoveAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        words(out, &self.addresses, self.epoch)
    }
}

pub async fn remove(
    broker: Rc<Broker>,
    session: Rc<Session>,
    request: Rc<RemoveAddress>,
) -> Result<RemovedMany, Fault> {
    let addresses = of(&broker)?;
    let own = session.holder();
    // Root may remove what is not its own: it is the operator.
    let who = if session.is_root() { None } else { Some(own) };
    let may = |address: IpAddr| addresses.check_removable(address, who, request.epoch).map(|()| address);
    let allowed = request.addresses.iter().map(|address| match addresses.leader_of(*address) {
        Some(leader) => Err(goes_with(*address, leader)),
        None => may(*address),
    });
    let allowed = with_followers(allowed.collect(), |address| addresses.followers_of(*address))?;
    let mut going: Vec<IpAddr> = allowed.iter().filter_map(|address| address.clone().ok()).collect();
    going.sort_unstable();
    going.dedup();
    let is_anothers = |address: &&IpAddr| addresses.holder_of(**address).is_some_and(|holder| holder != own);
    let others: Vec<IpAddr> = going.iter().filter(is_anothers).copied().collect();
    addresses.notify_removal(&others).await;
    let let_go = |address: &IpAddr| addresses.holder_of(*address).is_none();
    let (gone, going): (Vec<IpAddr>, Vec<IpAddr>) = going.into_iter().partition(let_go);
    let mut removed: HashMap<IpAddr, Result<Removed, Fault>> =
        going.iter().copied().zip(addresses.remove(&going)).collect();
    removed.extend(gone.into_iter().map(|address| (address, Ok(Removed { address, verified: false }))));
    addresses.verify_removal(&mut removed).await;
    let outcomes = allowed.into_iter().map(|address| {
        let address = address?;
        removed.get(&address).cloned().unwrap_or_else(|| Err(Fault::new(FaultCode::NotFound, "it is gone")))
    });
    Ok(RemovedMany { results: results(&session, &*request, outcomes.collect()) })
}

fn goes_with(address: IpAddr, leader: IpAddr) -> Fault {
    Fault::new(FaultCode::Denied, &format!("{address} follows {leader} and does not go by itself"))
        .remedy(&format!("remove {leader}: what follows it goes along"))
}
