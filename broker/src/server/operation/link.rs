//! SetLink: sets an interface up, down, or to another MTU.

use std::fmt;
use std::rc::Rc;

use nix::errno::Errno;
use portreeve_protocol::address::{Link, SetLink};
use portreeve_protocol::{Fault, FaultCode, Text};

use super::Done;
use super::handler::{Handler, Immediate};
use crate::policy::{Policy, Requester, Rule};
use crate::server::session::Session;
use crate::server::state::Broker;
use crate::sys::Interface;
use crate::sys::interface::Change;

impl Handler for SetLink {
    const CHANGES_STATE: bool = true;
    type Permit = Rc<Rule>;

    fn decide(&self, policy: &Policy, requester: &Requester) -> Result<Rc<Rule>, Fault> {
        Ok(policy.interface(requester, &self.interface)?)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} up {:?} mtu {:?}", self.interface, self.up, self.mtu)
    }
}

impl Immediate for SetLink {
    fn act(&self, _: &Rc<Rule>, broker: &Broker, _: &Session) -> Result<Done<Link>, Fault> {
        let route = super::address::manager(broker)?.route();
        let failed = |call: &'static str| {
            let name = self.interface.clone();
            move |errno: Errno| match errno {
                Errno::ENODEV => {
                    Fault::new(FaultCode::UnknownInterface, &format!("there is no interface {name:?}"))
                        .subject(&name)
                        .remedy("create it, or name another one")
                }
                errno => Fault::new(
                    FaultCode::Os,
                    &format!("{call} failed for the interface {name:?}: {}", errno.desc()),
                )
                .subject(call)
                .errno(errno as i32),
            }
        };
        let link = Interface::by_name(route, &self.interface).map_err(failed("RTM_GETLINK"))?;
        link.change(route, Change { up: self.up, mtu: self.mtu }).map_err(failed("RTM_NEWLINK"))?;
        let link = Interface::by_index(route, link.index).map_err(failed("RTM_GETLINK"))?;
        Ok(Done::new(Link {
            interface: Text::truncated(&link.name),
            index: link.index,
            up: link.up,
            carrier: link.carrier,
            mtu: link.mtu,
        }))
    }
}
