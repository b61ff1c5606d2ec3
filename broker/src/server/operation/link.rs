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
        write!(out, "{}", self.interface)?;
        self.up.iter().try_for_each(|up| out.write_str(if *up { " up" } else { " down" }))?;
        self.mtu.iter().try_for_each(|mtu| write!(out, " mtu {mtu}"))
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
                errno => fault(self, call, errno).subject(call).errno(errno as i32),
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

/// What failed, in the words of the request.
fn fault(request: &SetLink, call: &str, errno: Errno) -> Fault {
    let name = &request.interface;
    match (call, request.mtu, request.up) {
        ("RTM_NEWLINK", Some(mtu), _) if matches!(errno, Errno::EINVAL | Errno::ERANGE) => {
            Fault::new(FaultCode::Os, &format!("{name} does not accept MTU {mtu}"))
                .remedy(&format!("request one from minmtu to maxmtu of `ip -d link show {name}`"))
        }
        ("RTM_NEWLINK", mtu, up) => {
            let what = match (mtu, up) {
                (Some(mtu), _) => format!("set the MTU of {name} to {mtu}"),
                (None, Some(true)) => format!("set {name} up"),
                (None, _) => format!("set {name} down"),
            };
            Fault::new(FaultCode::Os, &format!("cannot {what}: {}", errno.desc()))
        }
        _ => Fault::new(FaultCode::Os, &format!("cannot look up {name}: {}", errno.desc())),
    }
}
