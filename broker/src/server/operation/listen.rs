//! Listen and ListenMany: opens listeners, or returns the sockets of existing ones.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use portreeve_protocol::message::{
    Listen, ListenItem, ListenMany, ListenMode, ListenOptions, ListenerId, Listening, ListeningMany, Outcome,
};
use portreeve_protocol::{Endpoint, Fault, FaultCode, List, Text};

use super::Done;
use super::handler::{Handler, Immediate, Part};
use crate::config::SocketOptions;
use crate::holder::Holder;
use crate::listener::Acquired;
use crate::policy::{Denied, ListenPermit, Policy, Requester};
use crate::server::session::Session;
use crate::server::state::Broker;

impl Handler for Listen {
    const CHANGES_STATE: bool = true;
    type Permit = ListenPermit;

    fn decide(&self, policy: &Policy, requester: &Requester) -> Result<ListenPermit, Fault> {
        Ok(policy.listen_request(requester, self)?)
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.endpoint, out)?;
        write_options(out, &self.options)?;
        out.write_str(if self.mode().kept { "" } else { " not kept" })
    }

    fn via(&self) -> Option<&'static str> {
        via(self.mode.0)
    }
}

/// The mark in the audit line of a request that stands for a bind(2).
fn via(mode: Option<ListenMode>) -> Option<&'static str> {
    mode.filter(|mode| mode.intercepted).map(|_| "bind")
}

/// Writes the options that are not the default ones, by their names in the configuration where they have one.
fn write_options(out: &mut fmt::Formatter<'_>, options: &ListenOptions) -> fmt::Result {
    let ListenOptions {
        backlog,
        reuse_port,
        dual_stack,
        free_bind,
        device,
        receive_buffer,
        send_buffer,
        no_delay,
        defer_accept,
        fast_open,
        mode,
    } = options;
    for (name, is_set) in [("reuse_port", reuse_port), ("dual_stack", dual_stack), ("free_bind", free_bind)] {
        if *is_set {
            write!(out, " {name}")?;
        }
    }
    if !device.is_empty() {
        write!(out, " device {device}")?;
    }
    let nonzero = |number: &u32| Some(*number).filter(|number| *number != 0);
    let numbers = [
        ("backlog", *backlog),
        ("receive_buffer", *receive_buffer),
        ("send_buffer", *send_buffer),
        ("defer_accept", nonzero(defer_accept)),
        ("fast_open", nonzero(fast_open)),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            write!(out, " {name} {number}")?;
        }
    }
    if let Some(no_delay) = no_delay {
        write!(out, " no_delay {no_delay}")?;
    }
    mode.iter().try_for_each(|mode| write!(out, " mode 0{mode:o}"))
}

impl Immediate for Listen {
    fn act(
        &self,
        permit: &ListenPermit,
        broker: &Broker,
        session: &Session,
    ) -> Result<Done<Listening>, Fault> {
        let (id, _) = acquire(broker, session, self, permit)?;
        Ok(Done { reply: Listening { id }, sockets: vec![id] })
    }
}

impl Handler for ListenMany {
    const CHANGES_STATE: bool = true;
    type Permit = Vec<Result<ListenPermit, Denied>>;

    fn decide(&self, policy: &Policy, requester: &Requester) -> Result<Self::Permit, Fault> {
        Ok(self.requests().map(|listen| policy.listen_request(requester, &listen)).collect())
    }

    fn arguments(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.requests().enumerate().try_for_each(|(index, listen)| {
            out.write_str(if index == 0 { "" } else { ", " })?;
            listen.arguments(out)
        })
    }

    fn via(&self) -> Option<&'static str> {
        via(self.mode.0)
    }

    fn parts<'r>(&self, reply: &'r ListeningMany) -> Option<Vec<Part<'r>>> {
        Some(reply.results.iter().map(Part::from).collect())
    }
}

impl Immediate for ListenMany {
    fn act(
        &self,
        permits: &Self::Permit,
        broker: &Broker,
        session: &Session,
    ) -> Result<Done<ListeningMany>, Fault> {
        refuse_duplicates(&self.listeners)?;
        let each = self.requests().zip(permits);
        let mut results: Vec<_> = each
            .map(|(listen, permit)| {
                let permit = permit.as_ref().map_err(Denied::fault)?;
                acquire(broker, session, &listen, permit)
            })
            .collect();
        session.note_refusals(faults(&results));
        if self.all_or_nothing && results.iter().any(Result::is_err) {
            roll_back(broker, &mut results);
        }
        let sockets = results.iter().filter_map(|result| Some(result.as_ref().ok()?.0)).collect();
        let brief = faults(&results) > MAX_WHOLE_FAULTS;
        let outcomes = results.into_iter().map(|result| match result {
            Ok((id, _)) => Outcome::Done(Listening { id }),
            Err(fault) if brief => Outcome::Fault(shortened(&fault)),
            Err(fault) => Outcome::Fault(fault),
        });
        Ok(Done { reply: ListeningMany { results: List::truncated(outcomes) }, sockets })
    }
}

/// Refuses a request that names an endpoint twice: each result would send the same socket once more.
fn refuse_duplicates(listeners: &[ListenItem]) -> Result<(), Fault> {
    let mut endpoints = HashSet::with_capacity(listeners.len());
    match listeners.iter().find(|listen| !endpoints.insert(&listen.endpoint)) {
        None => Ok(()),
        Some(ListenItem { endpoint, .. }) => {
            let message = format!("cannot listen: the request names the endpoint {endpoint} more than once");
            Err(Fault::new(FaultCode::Unsupported, &message)
                .subject(&endpoint.to_string())
                .remedy("request each endpoint once; no listener of this request was opened"))
        }
    }
}

fn faults<T>(results: &[Result<T, Fault>]) -> usize {
    results.iter().filter(|result| result.is_err()).count()
}

/// How many faults of the longest kind fit in a frame beside the other results.
pub(super) const MAX_WHOLE_FAULTS: usize = 40;

/// A fault so short that 253 of them fit in a frame.
pub(super) fn shortened(fault: &Fault) -> Fault {
    let message: Text<128> = Text::truncated(&fault.message);
    let subject: Text<64> = Text::truncated(&fault.subject);
    Fault { errno: fault.errno, ..Fault::new(fault.code, &message).subject(&subject) }
}

/// Acquires one listener. Returns its number and how it was acquired.
fn acquire(
    broker: &Broker,
    session: &Session,
    request: &Listen,
    permit: &ListenPermit,
) -> Result<(ListenerId, Acquired), Fault> {
    let unconfigured = SocketOptions::default();
    let settings = permit.socket().unwrap_or(&unconfigured);
    let user = match session.requester {
        Requester::Local { uid, .. } => Some(uid),
        Requester::Worker => None,
    };
    // An existing listener counts already.
    if broker.listener_quota_fault(&session.account).is_some()
        && !broker.registry.borrow().contains(&request.endpoint)
    {
        broker.registry.borrow_mut().end_closed_of(Holder::of_user(user));
        broker.listener_quota_fault(&session.account).map_or(Ok(()), Err)?;
    }
    let vrf = broker.vrf_at(&request.endpoint);
    let mut registry = broker.registry.borrow_mut();
    let acquired = registry.acquire(session.owner, user, request, settings, vrf.as_deref());
    drop(registry);
    acquired.map_err(|fault| match fault.code {
        FaultCode::NotLocal if permit.floating => {
            fault.remedy("request it again once its address is added: the broker then listens on it")
        }
        FaultCode::NotRetained | FaultCode::Os => out_of_reach(broker, &request.endpoint).unwrap_or(fault),
        _ => fault,
    })
}

/// The fault if a restriction applied at the start prevents what a reload permits: the kernel's error does not show that.
fn out_of_reach(broker: &Broker, endpoint: &Endpoint) -> Option<Fault> {
    let registry = broker.registry.borrow();
    let known = |directory: &Path| registry.directories().get(directory).is_ok();
    let reason = broker.reloading.fixed.out_of_reach(endpoint, known)?;
    let message = format!("cannot listen on {endpoint}: {reason}");
    Some(Fault::new(FaultCode::NotRetained, &message).subject("restart").remedy("restart portreeved"))
}

/// Rolls back what this request acquired. Listeners that existed before are as they were.
fn roll_back(broker: &Broker, results: &mut [Result<(ListenerId, Acquired), Fault>]) {
    let mut registry = broker.registry.borrow_mut();
    for result in results {
        if let Ok((id, acquired)) = *result {
            let rolled_back = || {
                Fault::new(FaultCode::Busy, "rolled back: another listener of the same request failed")
                    .remedy("see the fault of that listener")
            };
            *result = Err(registry.roll_back(id, acquired).err().unwrap_or_else(rolled_back));
        }
    }
}
