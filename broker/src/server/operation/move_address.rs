//! MoveAddress: policy permits each address and the interface that it is to be on; the rest is the addresses'.

use std::fmt;
use std::net::IpAddr;

use portreeve_protocol::address::{Leases, MoveAddress};
use portreeve_protocol::{Fault, FaultCode};

use super::Done;
use super::address::{of, permitted, results, with_followers, words};
use super::audit::Arguments;
use crate::address::AddSpec;
use crate::server::session::Session;
use crate::server::state::Broker;

impl Arguments for MoveAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "to {:?}, ", self.interface)?;
        words(out, &self.addresses, self.epoch)
    }
}

pub fn move_address(
    broker: &Broker,
    session: &Session,
    request: &MoveAddress,
) -> Result<Done<Leases>, Fault> {
    let addresses = of(broker)?;
    let place = |address: IpAddr, follows: Option<IpAddr>| {
        let prefix = broker.policy.borrow().place_on(&session.requester, address, &request.interface);
        let prefix = prefix.ok_or_else(|| nowhere(address, &request.interface))?;
        Ok(AddSpec { address, interface: request.interface.clone(), prefix, follows })
    };
    let to = |address: &IpAddr| {
        permitted(broker, session, *address, None)?;
        // Where one that follows it may not be it is not moved either.
        addresses
            .followers_of(*address)
            .into_iter()
            .try_for_each(|own| place(own, Some(*address)).map(drop))?;
        place(*address, None)
    };
    let asked = with_followers(request.addresses.iter().map(to).collect(), |asked: &AddSpec| {
        let followers = addresses.followers_of(asked.address).into_iter();
        followers.filter_map(|own| place(own, Some(asked.address)).ok()).collect()
    })?;
    let outcomes = addresses.move_to(&asked, Some(session.holder()), request.epoch, request.announce);
    Ok(Done::new(Leases { results: results(session, request, outcomes) }))
}

fn nowhere(address: IpAddr, interface: &str) -> Fault {
    let message = format!("no topology block that holds {address} names the interface {interface:?}");
    Fault::new(FaultCode::Denied, &message)
        .remedy("add such a topology scope to the cluster scope, or permit the interface")
}
