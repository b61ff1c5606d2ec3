//! Listen and ListenMany: policy permits the endpoint and says how its socket is made; the registry gives it.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;

use portreeve_protocol::message::{
    Listen, ListenMany, ListenOptions, ListenerId, Listening, ListeningMany, Operation as _, Outcome,
};
use portreeve_protocol::{Endpoint, Fault, FaultCode, InetEndpoint, List, Text};

use super::Done;
use super::audit::{Arguments, Shown};
use crate::config::SocketOptions;
use crate::listener::asked::Came;
use crate::policy::{ListenPermit, Policy, Requester, Rule};
use crate::server::session::Session;
use crate::server::state::Broker;

impl Arguments for Listen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.endpoint, out)?;
        if self.options == ListenOptions::default() { Ok(()) } else { write!(out, " {:?}", self.options) }
    }

    fn rules(&self, policy: &Policy, who: &Requester, tell: &mut dyn FnMut(&Rule)) {
        policy.listen(who, &self.endpoint).into_iter().for_each(|permit| tell(permit.rule));
    }
}

impl Arguments for ListenMany {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.listeners.iter().enumerate().try_for_each(|(index, listen)| {
            out.write_str(if index == 0 { "" } else { ", " })?;
            Arguments::fmt(listen, out)
        })
    }

    fn rules(&self, policy: &Policy, who: &Requester, tell: &mut dyn FnMut(&Rule)) {
        self.listeners.iter().for_each(|listen| listen.rules(policy, who, tell));
    }

    fn count(reply: &ListeningMany, count: impl Fn(Option<FaultCode>)) {
        reply.results.iter().for_each(|result| count(result.fault().map(|fault| fault.code)));
    }
}

pub fn listen(broker: &Broker, session: &Session, request: &Listen) -> Result<Done<Listening>, Fault> {
    let (id, _) = one(broker, session, request)?;
    Ok(Done { reply: Listening { id }, sockets: vec![id] })
}

pub fn listen_many(
    broker: &Broker,
    session: &Session,
    request: &ListenMany,
) -> Result<Done<ListeningMany>, Fault> {
    let mut results: Vec<_> = request.listeners.iter().map(|listen| one(broker, session, listen)).collect();
    session.note_refusals(faults(&results));
    for (listen, result) in request.listeners.iter().zip(&results) {
        if let Err(fault) = result {
            audit_one(session, listen, fault);
        }
    }
    if request.all_or_nothing && results.iter().any(Result::is_err) {
        withdraw(broker, &mut results);
    }
    let sockets = results.iter().filter_map(|result| Some(result.as_ref().ok()?.0)).collect();
    let brief = faults(&results) > WHOLE_FAULTS;
    let outcomes = results.into_iter().map(|result| match result {
        Ok((id, _)) => Outcome::Done(Listening { id }),
        Err(fault) if brief => Outcome::Fault(shortened(&fault)),
        Err(fault) => Outcome::Fault(fault),
    });
    Ok(Done { reply: ListeningMany { results: List::truncated(outcomes) }, sockets })
}

/// Of many, what was refused has a line of its own, as if it had been asked for alone.
fn audit_one(session: &Session, listen: &Listen, fault: &Fault) {
    if session.account.may_log() {
        let (peer, arguments, code) = (&session.requester, Shown(listen), fault.code.name());
        let (session, why, about, errno) = (session.number, &*fault.message, &*fault.subject, fault.errno);
        tracing::warn!(target: "audit", session, %peer, operation = ListenMany::NAME, %arguments, code, why, about, errno, "refused");
    }
}

fn faults<T>(results: &[Result<T, Fault>]) -> usize {
    results.iter().filter(|result| result.is_err()).count()
}

/// How many faults of the longest fit in a frame beside the other results.
pub(super) const WHOLE_FAULTS: usize = 40;

/// A fault that fits in a frame with 252 like it.
pub(super) fn shortened(fault: &Fault) -> Fault {
    let message: Text<128> = Text::truncated(&fault.message);
    let subject: Text<64> = Text::truncated(&fault.subject);
    Fault { errno: fault.errno, ..Fault::new(fault.code, &message).subject(&subject) }
}

/// A listener, and how this request came by it.
fn one(broker: &Broker, session: &Session, request: &Listen) -> Result<(ListenerId, Came), Fault> {
    let policy = broker.policy.borrow();
    let permit = permit(&policy, &session.requester, request)?;
    let unconfigured = SocketOptions::default();
    let settings = permit.socket().unwrap_or(&unconfigured);
    // What is there already costs nothing more.
    if let Some(fault) = broker.listeners_used_up(&session.account)
        && !broker.registry.borrow().holds(&request.endpoint)
    {
        return Err(fault);
    }
    let user = match session.requester {
        Requester::Local { uid, .. } => Some(uid),
        Requester::Worker => None,
    };
    let listening = broker.registry.borrow_mut().listen(session.owner, user, request, settings);
    listening.map_err(|fault| match fault.code {
        FaultCode::NotLocal if policy.starts_with_its_address(&request.endpoint) => {
            fault.remedy("ask again once its address is added: it listens from then on")
        }
        FaultCode::NotRetained | FaultCode::Os => out_of_reach(broker, &request.endpoint).unwrap_or(fault),
        _ => fault,
    })
}

/// Leave to listen, for a dual-stack socket on both of its endpoints.
pub fn permit<'p>(policy: &'p Policy, who: &Requester, request: &Listen) -> Result<ListenPermit<'p>, Fault> {
    let permit = policy.listen(who, &request.endpoint).map_err(|denied| denied.fault())?;
    let both = request.options.dual_stack.then(|| same_port_of_ipv4(&request.endpoint)).flatten();
    if let Some(ipv4) = both {
        policy.listen(who, &ipv4).map_err(|denied| denied.fault())?;
    }
    Ok(permit)
}

/// What a reload permits and the start forbade is refused by the kernel, in words that are not about that.
fn out_of_reach(broker: &Broker, endpoint: &Endpoint) -> Option<Fault> {
    let registry = broker.registry.borrow();
    let known = |directory: &Path| registry.directories().get(directory).is_ok();
    let why = broker.reloading.fixed.out_of_reach(endpoint, known)?;
    let message = format!("{endpoint} cannot be bound: {why}");
    Some(Fault::new(FaultCode::NotRetained, &message).subject("restart").remedy("restart portreeved"))
}

/// What a dual-stack socket listens on beside its own endpoint.
pub fn same_port_of_ipv4(endpoint: &Endpoint) -> Option<Endpoint> {
    let any = |inet: &InetEndpoint| InetEndpoint {
        address: Ipv4Addr::UNSPECIFIED.into(),
        port: inet.port,
        scope: Text::default(),
    };
    match endpoint {
        Endpoint::Tcp(inet) => Some(Endpoint::Tcp(any(inet))),
        Endpoint::Udp(inet) => Some(Endpoint::Udp(any(inet))),
        Endpoint::UnixStream(_) | Endpoint::UnixSeqpacket(_) => None,
    }
}

/// Takes back what this request came by, and only that: what was there before it is as it was.
fn withdraw(broker: &Broker, results: &mut [Result<(ListenerId, Came), Fault>]) {
    let mut registry = broker.registry.borrow_mut();
    for result in results {
        if let Ok((id, came)) = *result {
            let withdrawn = || Fault::new(FaultCode::Busy, "another listener of the same request failed");
            *result = Err(registry.take_back(id, came).err().unwrap_or_else(withdrawn));
        }
    }
}
