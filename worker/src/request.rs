//! The output of each request: its reply, joined with the attached sockets. Only this module assigns sockets to listeners.

use std::os::fd::OwnedFd;

use portreeve_protocol::address::{
    AddAddress, AddressPage, Announce, Leases, Link, ListAddresses, MoveAddress, Removals, RemoveAddress,
    RenewAddress, RenewAll, RenewedAll, SetLink,
};
use portreeve_protocol::cluster::{ClusterRequest, ClusterSettings};
use portreeve_protocol::event::{Subscribe, Subscribed};
use portreeve_protocol::limit::{CurrentLimit, SetLimit};
use portreeve_protocol::message::{
    Hello, Listen, ListenMany, ListenerId, Outcome, Ping, Pong, StatusRequest, Stop, Stopped, Welcome,
};
use portreeve_protocol::metrics::{Metrics, MetricsRequest};
use portreeve_protocol::policy::{PolicyPage, PolicyRequest};
use portreeve_protocol::reload::{Reload, Reloaded};
use portreeve_protocol::status::Status;
use portreeve_protocol::worker::{RestartWorker, SignalWorker, WorkerRequest, WorkerSignaled, WorkerStatus};
use portreeve_protocol::{Fault, Operation};

/// A listener's number and its socket.
pub(crate) type ReceivedListener = (ListenerId, OwnedFd);

/// An operation, with the type that a client returns for it.
pub(crate) trait Request: Operation {
    /// The reply, with its sockets.
    type Output;
    /// Whether the request may be sent to the next broker if it is unknown whether this broker carried it out.
    const REPEATABLE: bool = true;

    /// Joins a reply with its attached descriptors; `None` if there are too few. The caller reports descriptors that
    /// remain in the list as an error.
    fn join(reply: Self::Reply, descriptors: &mut Vec<OwnedFd>) -> Option<Self::Output>;
}

macro_rules! without_descriptors {
    ($repeatable:literal, $($request:ty => $reply:ty),*) => {
        $(impl Request for $request {
            type Output = $reply;
            const REPEATABLE: bool = $repeatable;
            fn join(reply: $reply, _: &mut Vec<OwnedFd>) -> Option<$reply> {
                Some(reply)
            }
        })*
    };
}

// If a broker has ended before its reply, these are sent again to the next one.
without_descriptors! {
    true,
    Hello => Welcome, Ping => Pong, StatusRequest => Status, MetricsRequest => Metrics, AddAddress => Leases,
    RenewAddress => Leases, RenewAll => RenewedAll, ListAddresses => AddressPage, PolicyRequest => PolicyPage,
    ClusterRequest => ClusterSettings, WorkerRequest => WorkerStatus, Subscribe => Subscribed
}

// These name a number that is valid in one broker only, remove an address, or have an effect each time.
without_descriptors! {
    false,
    Stop => Stopped, RemoveAddress => Removals, Announce => Leases, MoveAddress => Leases, SetLink => Link,
    SetLimit => CurrentLimit, Reload => Reloaded, RestartWorker => WorkerStatus, SignalWorker => WorkerSignaled
}

impl Request for Listen {
    type Output = ReceivedListener;
    fn join(reply: Self::Reply, descriptors: &mut Vec<OwnedFd>) -> Option<ReceivedListener> {
        Some((reply.id, descriptors.pop()?))
    }
}

impl Request for ListenMany {
    type Output = Vec<Result<ReceivedListener, Fault>>;
    fn join(reply: Self::Reply, descriptors: &mut Vec<OwnedFd>) -> Option<Self::Output> {
        let results = reply.results.into_vec();
        let done = results.iter().filter(|result| matches!(result, Outcome::Done(_)));
        if done.count() != descriptors.len() {
            return None;
        }
        let mut sockets = descriptors.drain(..);
        results
            .into_iter()
            .map(|result| match result {
                Outcome::Done(listening) => Some(Ok((listening.id, sockets.next()?))),
                Outcome::Fault(fault) => Some(Err(fault)),
            })
            .collect()
    }
}
