//! SetLimit: sets a resource limit of the peer's own process.

use std::fmt;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use nix::errno::Errno;
use portreeve_protocol::limit::{CurrentLimit, SetLimit, UNLIMITED};
use portreeve_protocol::{Fault, FaultCode, Text};

use super::Done;
use super::handler::{Handler, Immediate};
use crate::config::{Limit, Resource};
use crate::policy::{Permit, Policy, Requester, Rule};
use crate::server::session::Session;
use crate::server::state::Broker;
use crate::sys::rlimit::{LimitError, PeerProcess};

/// Permission to set a resource limit.
pub struct LimitPermit {
    rule: Rc<Rule>,
    /// The resource, and the highest value that is requested.
    limit: Limit,
}

impl Permit for LimitPermit {
    fn for_each_rule(&self, visit: &mut dyn FnMut(&Rule)) {
        self.rule.for_each_rule(visit);
    }
}

impl Handler for SetLimit {
    const CHANGES_STATE: bool = true;
    type Permit = LimitPermit;

    fn decide(&self, policy: &Policy, requester: &Requester) -> Result<LimitPermit, Fault> {
        let Some(resource) = Resource::named(&self.resource) else {
            return Err(unsupported(&format!("there is no resource {:?}", self.resource))
                .remedy("name one as getrlimit(2) does, without RLIMIT_: nofile"));
        };
        // Reading a limit is permitted if any limit of the resource is.
        let highest = self.soft.into_iter().chain(self.hard).max().unwrap_or(0);
        let limit = Limit { resource, value: Some(highest).filter(|highest| *highest != UNLIMITED) };
        Ok(LimitPermit { rule: policy.limit(requester, &limit)?, limit })
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.resource)?;
        self.soft.iter().try_for_each(|soft| write!(out, " soft {soft}"))?;
        self.hard.iter().try_for_each(|hard| write!(out, " hard {hard}"))
    }
}

impl Immediate for SetLimit {
    fn act(
        &self,
        permit: &LimitPermit,
        broker: &Broker,
        session: &Session,
    ) -> Result<Done<CurrentLimit>, Fault> {
        let limit = &permit.limit;
        // The seccomp filter would end this process.
        if let Some(reason) = broker.reloading.fixed.no_limit(limit.resource).filter(|_| sets_any(self)) {
            let message = format!("cannot set the limit {limit}: {reason}");
            return Err(Fault::new(FaultCode::NotRetained, &message).remedy("restart portreeved"));
        }
        let process = match session.requester {
            Requester::Worker => of_worker(broker, session),
            Requester::Local { uid, .. } => {
                let pid = broker.sessions.borrow().get(&session.number).map_or(0, |info| info.pid);
                PeerProcess::of(session.channel.as_fd(), pid, uid).map_err(LimitError::Os)
            }
        };
        let set = process.and_then(|process| process.limit(limit.resource.number(), self.soft, self.hard));
        let (soft, hard) = set.map_err(|error| refused(error, limit))?;
        Ok(Done::new(CurrentLimit { resource: Text::truncated(limit.resource.name()), soft, hard }))
    }
}

/// The process of the worker that sent the request: itself, or a descendant that has its channel. Any process that got hold of
/// the channel could send it, so it must run as the worker's user.
fn of_worker(broker: &Broker, session: &Session) -> Result<PeerProcess, LimitError> {
    let sender = session.take_sender().ok_or(Errno::ENOPROTOOPT)?;
    match broker.worker_uid() == Some(sender.uid) {
        true => Ok(PeerProcess::of_sender(sender)?),
        false => Err(LimitError::OtherUser),
    }
}

fn unsupported(message: &str) -> Fault {
    Fault::new(FaultCode::Unsupported, message)
}

/// Whether the request sets a limit, and does not only read it.
fn sets_any(request: &SetLimit) -> bool {
    request.soft.is_some() || request.hard.is_some()
}

fn refused(error: LimitError, limit: &Limit) -> Fault {
    let errno = match error {
        LimitError::Os(errno) => errno,
        LimitError::OtherUser => {
            let message =
                format!("cannot set the limit {limit}: the process does not run as the user of this channel");
            return Fault::new(FaultCode::Denied, &message)
                .remedy("send the request from a process whose real, effective and saved user is that one");
        }
        LimitError::Lowered => {
            let message = format!(
                "cannot lower the limit {limit}: this kernel does not tell whether the process still runs as the user \
                 that connected (PIDFD_GET_INFO)"
            );
            return unsupported(&message).remedy("lower it in the process itself, with setrlimit(2)");
        }
        LimitError::NotRestored { pid, before: (soft, hard), errno } => {
            tracing::error!(
                target: "audit",
                pid,
                resource = limit.resource.name(),
                soft,
                hard,
                error = errno.desc(),
                "a peer's process ended while its limit was set, and the process that has its number now could not be \
                 given its limits back: set them with prlimit(1)"
            );
            Errno::ESRCH
        }
    };
    let fault = match errno {
        Errno::EPERM => Fault::new(
            FaultCode::NotRetained,
            &format!(
                "cannot set the limit {limit}: it is above the hard limit, or the process is not user 0's"
            ),
        )
        .subject("cap_sys_resource")
        .remedy("add cap_sys_resource+ep to capabilities, and for nofile see fs.nr_open"),
        Errno::ENOPROTOOPT => Fault::new(
            FaultCode::Unsupported,
            "cannot set limits of a peer: this kernel does not identify its process (SO_PEERPIDFD, SO_PASSPIDFD)",
        )
        .remedy("boot Linux 6.5 or later"),
        Errno::ESRCH => Fault::new(
            FaultCode::NotFound,
            "the process that connected has ended, or its pid namespace is not visible to the broker",
        )
        .remedy("connect from the process itself"),
        Errno::EINVAL => Fault::new(FaultCode::Unsupported, "the soft limit would be above the hard limit")
            .remedy("raise both limits"),
        errno => Fault::new(FaultCode::Os, &format!("cannot set the limit {limit}: {}", errno.desc()))
            .subject("prlimit"),
    };
    fault.errno(errno as i32)
}
