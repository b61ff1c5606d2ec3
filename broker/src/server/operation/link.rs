//! SetLink: an interface that policy permits is set up, down, or to another MTU.

use std::fmt;

use nix::errno::Errno;
use portreeve_protocol::address::{Link, SetLink};
use portreeve_protocol::{Fault, FaultCode, Text};

use super::Done;
use super::audit::Arguments;
use crate::policy::{Policy, Requester, Rule};
use crate::server::session::Session;
use crate::server::state::Broker;
use crate::sys::Interface;
use crate::sys::interface::Change;

impl Arguments for SetLink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} up {:?} mtu {:?}", self.interface, self.up, self.mtu)
    }

    fn rules(&self, policy: &Policy, who: &Requester, tell: &mut dyn FnMut(&Rule)) {
        policy.interface(who, &self.interface).into_iter().for_each(tell);
    }
}

pub fn set_link(broker: &Broker, session: &Session, request: &SetLink) -> Result<Done<Link>, Fault> {
    let policy = broker.policy.borrow();
    policy.interface(&session.requester, &request.interface).map_err(|denied| denied.fault())?;
    let route = super::address::of(broker)?.route();
    let failed = |call: &'static str| {
        let name = request.interface.clone();
        move |errno: Errno| match errno {
            Errno::ENODEV => {
                Fault::new(FaultCode::UnknownInterface, &format!("there is no interface {name:?}"))
                    .about(&name)
                    .remedy("make it, or name another")
            }
            errno => Fault::new(FaultCode::Os, &format!("{call} of {name:?}: {}", errno.desc()))
                .about(call)
                .errno(errno as i32),
        }
    };
    let link = Interface::by_name(route, &request.interface).map_err(failed("RTM_GETLINK"))?;
    link.change(route, Change { up: request.up, mtu: request.mtu }).map_err(failed("RTM_NEWLINK"))?;
    let link = Interface::by_index(route, link.index).map_err(failed("RTM_GETLINK"))?;
    Ok(Done::new(Link {
        interface: Text::clipped(&link.name),
        index: link.index,
        up: link.up,
        carrier: link.carrier,
        mtu: link.mtu,
    }))
}
