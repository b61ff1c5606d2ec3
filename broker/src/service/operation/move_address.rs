//! MoveAddress: policy permits each address and the interface that it is to be on; the rest is the addresses'.

use std::fmt;
use std::net::IpAddr;

use portreeve_protocol::address::{Leases, MoveAddress};
use portreeve_protocol::{Fault, FaultCode};

use super::Done;
use super::address::{of, permitted, results, words};
use super::audit::Arguments;
use crate::address::Asked;
use crate::service::session::Session;
use crate::service::state::Broker;

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
    let to = |address: &IpAddr| {
        let asked = permitted(broker, session, *address, None)?;
        let prefix = broker.policy.borrow().place_on(&session.requester, *address, &request.interface);
        let prefix = prefix.ok_or_else(|| nowhere(*address, &request.interface))?;
        Ok(Asked { interface: request.interface.clone(), prefix, ..asked })
    };
    let asked: Vec<_> = request.addresses.iter().map(to).collect();
    let outcomes = of(broker)?.move_to(&asked, Some(session.holder()), request.epoch, request.announce);
    Ok(Done::new(Leases { results: results(session, request, outcomes) }))
}

fn nowhere(address: IpAddr, interface: &str) -> Fault {
    let message = format!("no topology block that holds {address} names the interface {interface:?}");
    Fault::new(FaultCode::Denied, &message)
        .remedy("add such a topology scope to the cluster scope, or permit the interface")
}
