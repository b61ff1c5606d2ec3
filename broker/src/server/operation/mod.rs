//! The operations, one file each: how policy decides a request, and what the broker then does.
//!
//! This file finds the operation of a request; [`handler`] takes the request from its bytes to its audit line.
//! ARCHITECTURE.md has the checklist for a new operation.

mod address;
mod audit;
mod cluster;
mod handler;
mod hello;
mod limit;
mod link;
mod listen;
mod metrics;
mod move_address;
mod ping;
mod policy;
mod reload;
mod remove_address;
mod renew_all;
mod status;
mod stop;
mod subscribe;
mod takeover;
mod worker;

use std::rc::Rc;

use portreeve_protocol::address::{
    AddAddress, Announce, ListAddresses, MoveAddress, RemoveAddress, RenewAddress, RenewAll, SetLink,
};
use portreeve_protocol::cluster::ClusterRequest;
use portreeve_protocol::event::Subscribe;
use portreeve_protocol::limit::SetLimit;
use portreeve_protocol::message::{
    Hello, Listen, ListenMany, OPERATIONS, Operation, Ping, StatusRequest, Stop,
};
use portreeve_protocol::metrics::MetricsRequest;
use portreeve_protocol::policy::PolicyRequest;
use portreeve_protocol::reload::Reload;
use portreeve_protocol::takeover::Takeover;
use portreeve_protocol::worker::{RestartWorker, SignalWorker, WorkerRequest};
use portreeve_protocol::{Fault, FaultCode, Kind};

pub use self::handler::Received;
use self::handler::{Done, deferred, immediate};
use super::session::{Session, Step};
use super::state::Broker;
use crate::log;

/// How requests of one kind are served.
type Serve = fn(&Rc<Broker>, &Rc<Session>, Received<'_>) -> Step;

/// Every operation of the protocol, in the order of [`OPERATIONS`].
const TABLE: &[(Kind, Serve)] = &[
    (Hello::KIND, immediate::<Hello>),
    (Ping::KIND, immediate::<Ping>),
    (Listen::KIND, immediate::<Listen>),
    (ListenMany::KIND, immediate::<ListenMany>),
    (Stop::KIND, immediate::<Stop>),
    (StatusRequest::KIND, immediate::<StatusRequest>),
    (AddAddress::KIND, deferred::<AddAddress>),
    (RenewAddress::KIND, immediate::<RenewAddress>),
    (RemoveAddress::KIND, deferred::<RemoveAddress>),
    (Announce::KIND, immediate::<Announce>),
    (ListAddresses::KIND, immediate::<ListAddresses>),
    (SetLink::KIND, immediate::<SetLink>),
    (MoveAddress::KIND, immediate::<MoveAddress>),
    (SetLimit::KIND, immediate::<SetLimit>),
    (PolicyRequest::KIND, immediate::<PolicyRequest>),
    (Subscribe::KIND, deferred::<Subscribe>),
    (MetricsRequest::KIND, immediate::<MetricsRequest>),
    (Reload::KIND, deferred::<Reload>),
    (Takeover::KIND, takeover::serve),
    (RenewAll::KIND, immediate::<RenewAll>),
    (ClusterRequest::KIND, immediate::<ClusterRequest>),
    (WorkerRequest::KIND, immediate::<WorkerRequest>),
    (RestartWorker::KIND, deferred::<RestartWorker>),
    (SignalWorker::KIND, deferred::<SignalWorker>),
];

/// A TABLE without every operation does not compile.
#[allow(clippy::indexing_slicing)] // the compiler evaluates it
const _: () = {
    assert!(
        TABLE.len() == OPERATIONS.len(),
        "TABLE lacks an operation of the protocol: see step 5 of \"Adding an operation\" in ARCHITECTURE.md"
    );
    let mut at = 0;
    while at < TABLE.len() {
        assert!(TABLE[at].0.0 == OPERATIONS[at].0.0, "TABLE must be in the order of OPERATIONS");
        at += 1;
    }
};

/// Finds the operation of a request and serves it.
pub fn dispatch(broker: &Rc<Broker>, session: &Rc<Session>, received: Received<'_>) -> Step {
    let kind = received.header.kind;
    match TABLE.iter().find(|(known, _)| *known == kind) {
        Some((_, serve)) => serve(broker, session, received),
        None => unknown(session, received, kind),
    }
}

fn unknown(session: &Session, received: Received<'_>, Kind(number): Kind) -> Step {
    let message = format!("this broker has no operation {number}");
    let fault = Fault::new(FaultCode::Unsupported, &message)
        .remedy("use a broker of a later release; the reply to hello names this one's");
    session.account.notice(|| {
        let (peer, session, code) = (log::named(session.holder()), session.number, fault.code.name());
        tracing::warn!(target: "audit", session, %peer, operation = number, code, "refused");
    });
    session.refuse(received.outbox, received.header.request, &fault)
}
