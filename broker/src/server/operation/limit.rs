//! SetLimit: a resource limit of the peer's own process, as far as policy permits it.

use std::fmt;
use std::os::fd::AsFd as _;

use nix::errno::Errno;
use portreeve_protocol::limit::{CurrentLimit, SetLimit, UNLIMITED};
use portreeve_protocol::{Fault, FaultCode, Text};

use super::Done;
use super::audit::Arguments;
use crate::config::{Limit, Resource};
use crate::policy::Requester;
use crate::server::session::Session;
use crate::server::state::Broker;
use crate::sys::rlimit::PeerProcess;

impl Arguments for SetLimit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} soft {:?} hard {:?}", self.resource, self.soft, self.hard)
    }
}

pub fn set_limit(
    broker: &Broker,
    session: &Session,
    request: &SetLimit,
) -> Result<Done<CurrentLimit>, Fault> {
    let unsupported = |message: &str| Fault::new(FaultCode::Unsupported, message);
    let Some(resource) = Resource::named(&request.resource) else {
        return Err(unsupported(&format!("there is no resource {:?}", request.resource))
            .remedy("name one as getrlimit(2) does, without RLIMIT_: nofile"));
    };
    // What is only asked for is permitted where any limit of the resource is.
    let most = request.soft.into_iter().chain(request.hard).max().unwrap_or(0);
    let limit = Limit { resource, value: Some(most).filter(|most| *most != UNLIMITED) };
    broker.policy.borrow().limit(&session.requester, &limit).map_err(|denied| denied.fault())?;
    if session.requester == Requester::Worker {
        return Err(unsupported("the worker has the limits that it was started with")
            .remedy("write them in the worker scope, and start it again"));
    }
    // The call would end this process.
    if let Some(why) = broker.reloading.fixed.no_limits().filter(|_| sets_any(request)) {
        let message = format!("{limit} cannot be set: {why}");
        return Err(Fault::new(FaultCode::NotRetained, &message).remedy("restart portreeved"));
    }
    let pid = broker.sessions.borrow().get(&session.number).map_or(0, |info| info.pid);
    let set = PeerProcess::of(session.channel.as_fd(), pid)
        .and_then(|process| process.limit(resource.number(), request.soft, request.hard));
    let (soft, hard) = set.map_err(|errno| refused(errno, &limit))?;
    Ok(Done::new(CurrentLimit { resource: Text::truncated(resource.name()), soft, hard }))
}

/// Whether anything is to be changed, and not only told.
fn sets_any(request: &SetLimit) -> bool {
    request.soft.is_some() || request.hard.is_some()
}

fn refused(errno: Errno, limit: &Limit) -> Fault {
    let fault = match errno {
        Errno::EPERM => Fault::new(
            FaultCode::NotRetained,
            &format!("{limit} cannot be given: it is above the hard limit or the process is not root's"),
        )
        .subject("cap_sys_resource")
        .remedy("add cap_sys_resource+ep to capabilities, and for nofile see fs.nr_open"),
        Errno::ENOPROTOOPT => {
            Fault::new(FaultCode::Unsupported, "this kernel does not pin the process of a peer")
                .remedy("boot Linux 6.5 or later")
        }
        Errno::ESRCH => Fault::new(
            FaultCode::NotFound,
            "the process that connected is gone, or in a process namespace that the broker does not see",
        )
        .remedy("connect from the process itself"),
        Errno::EINVAL => Fault::new(FaultCode::Unsupported, "the soft limit would be above the hard one")
            .remedy("raise both"),
        errno => Fault::new(FaultCode::Os, &format!("prlimit: {}", errno.desc())).subject("prlimit"),
    };
    fault.errno(errno as i32)
}
