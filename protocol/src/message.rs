//! The operations: number, name, request type and reply type of each; and the messages about sessions and listeners.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::address::{
    AddAddress, AddressPage, Announce, Leases, Link, ListAddresses, MoveAddress, Removals, RemoveAddress,
    RenewAddress, RenewAll, RenewedAll, SetLink,
};
use crate::bounded::{List, Text};
use crate::cluster::{ClusterRequest, ClusterSettings};
use crate::endpoint::{Endpoint, MAX_INTERFACE};
use crate::event::{Subscribe, Subscribed};
use crate::fault::Fault;
use crate::frame::{Kind, MAX_DESCRIPTORS};
use crate::limit::{CurrentLimit, SetLimit};
use crate::metrics::{Metrics, MetricsRequest};
use crate::policy::{PolicyPage, PolicyRequest};
use crate::reload::{Reload, Reloaded};
use crate::status::Status;
use crate::takeover::{Takeover, TakeoverReply};
use crate::trailing::Trailing;
use crate::worker::{RestartWorker, SignalWorker, WorkerRequest, WorkerSignaled, WorkerStatus};

/// A request type, with the type of its reply. Sealed: only the operations of the protocol implement it.
pub trait Operation: Serialize + DeserializeOwned + sealed::Sealed {
    /// The kind of the request frame: the operation's number.
    const KIND: Kind;
    /// The operation's name in the configuration, the audit log and the metrics.
    const NAME: &'static str;
    /// The type of the reply to a successful request.
    type Reply: Serialize + DeserializeOwned;
}

macro_rules! operations {
    ($($number:literal $name:literal $request:ident -> $reply:ident;)*) => {
        mod sealed {
            pub trait Sealed {}
            $(impl Sealed for super::$request {})*
        }

        $(impl Operation for $request {
            const KIND: Kind = Kind($number);
            const NAME: &'static str = $name;
            type Reply = $reply;
        })*

        /// The kind and name of every operation, by number.
        pub const OPERATIONS: &[(Kind, &str)] = &[$((Kind($number), $name)),*];
    };
}

/// The longest name of an operation in bytes, as [`Welcome`] and the metrics carry it.
pub const MAX_OPERATION_NAME: usize = 16;
/// The maximum number of operations, as [`Welcome`] and the metrics carry them.
pub const MAX_OPERATIONS: usize = 32;

const _: () = {
    assert!(OPERATIONS.len() <= MAX_OPERATIONS, "there are more than 32 operations");
    let mut rest = OPERATIONS;
    while let [(_, name), more @ ..] = rest {
        assert!(name.len() <= MAX_OPERATION_NAME, "the name of an operation has more than 16 bytes");
        rest = more;
    }
};

operations! {
    1 "hello"       Hello -> Welcome;
    2 "ping"        Ping -> Pong;
    3 "listen"      Listen -> Listening;
    4 "listen-many" ListenMany -> ListeningMany;
    5 "stop"        Stop -> Stopped;
    6 "status"      StatusRequest -> Status;
    7 "add-address"    AddAddress -> Leases;
    8 "renew-address"  RenewAddress -> Leases;
    9 "remove-address" RemoveAddress -> Removals;
    10 "announce"      Announce -> Leases;
    11 "list-addresses" ListAddresses -> AddressPage;
    12 "set-link"      SetLink -> Link;
    13 "move-address"  MoveAddress -> Leases;
    14 "set-limit"     SetLimit -> CurrentLimit;
    15 "policy"        PolicyRequest -> PolicyPage;
    16 "subscribe"     Subscribe -> Subscribed;
    17 "metrics"       MetricsRequest -> Metrics;
    18 "reload"        Reload -> Reloaded;
    19 "takeover"      Takeover -> TakeoverReply;
    20 "renew-all"     RenewAll -> RenewedAll;
    21 "cluster"       ClusterRequest -> ClusterSettings;
    22 "worker"        WorkerRequest -> WorkerStatus;
    23 "restart-worker" RestartWorker -> WorkerStatus;
    24 "signal-worker" SignalWorker -> WorkerSignaled;
}

/// The number of a listener. It is never 0 and is not reused during the broker's lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerId(pub u64);

/// The first request of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// A name for the peer in logs and in `status`. It has no influence on policy.
    pub client: Text<64>,
    /// Bit set of the optional [`Features`] that the peer supports.
    pub features: u64,
}

/// The bits of optional features: a message has the fields of a feature only in a session in which both sides support it.
#[derive(Clone, Copy, Debug)]
pub struct Features;

impl Features {
    /// Replies about leases have [`LeaseTimes`](crate::address::LeaseTimes) or [`PageTimes`](crate::address::PageTimes).
    pub const LEASE_TIMES: u64 = 1;
    /// Requests for listeners can have a [`ListenMode`].
    pub const LISTEN_MODE: u64 = 2;
}

/// The reply to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The broker's process id in its own pid namespace.
    pub broker: u32,
    /// The version of the broker's release.
    pub release: Text<32>,
    /// Bit set of the features that both sides support.
    pub features: u64,
    /// Bit set of the broker's effective capabilities, bit n for capability n. See capabilities(7).
    pub capabilities: u64,
    /// The peer's identity according to the broker: `worker`, or a user of the control socket.
    pub peer: Text<64>,
    /// The names of the operations that policy allows this peer and that this broker can serve.
    pub operations: List<Text<MAX_OPERATION_NAME>, MAX_OPERATIONS>,
}

/// Request: test whether the broker responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {}

/// The reply to [`Ping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {}

/// Options of a listener's socket. `None` selects the value that the configuration has for the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ListenOptions {
    /// The length of the accept queue, limited by net.core.somaxconn. See listen(2).
    pub backlog: Option<u32>,
    /// SO_REUSEPORT: several sockets can bind the same endpoint. See socket(7).
    pub reuse_port: bool,
    /// Clear IPV6_V6ONLY: an IPv6 wildcard socket accepts IPv4 connections too. See ipv6(7).
    pub dual_stack: bool,
    /// IP_FREEBIND: bind an address that this host does not have yet. See ip(7).
    pub free_bind: bool,
    /// SO_BINDTODEVICE: accept packets from this interface only; empty for all interfaces, and for a leased address in a VRF
    /// for those of the VRF. See socket(7).
    pub device: Text<MAX_INTERFACE>,
    /// SO_RCVBUF in bytes; 0 keeps the system's default. See socket(7).
    pub receive_buffer: Option<u32>,
    /// SO_SNDBUF in bytes; 0 keeps the system's default. See socket(7).
    pub send_buffer: Option<u32>,
    /// TCP_NODELAY, which accepted connections inherit. See tcp(7).
    pub no_delay: Option<bool>,
    /// TCP_DEFER_ACCEPT in seconds: accept(2) returns a connection only once data has arrived. 0 disables it.
    pub defer_accept: u32,
    /// TCP_FASTOPEN: the maximum number of connections with an incomplete handshake. 0 disables it.
    pub fast_open: u32,
    /// The permission bits of a Unix socket's file.
    pub mode: Option<u32>,
}

/// Who has the socket of a listener, and why it is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ListenMode {
    /// The broker keeps a copy of the socket. Otherwise the listener ends when the peer closes its last copy.
    pub kept: bool,
    /// The request stands for a bind(2) of a program that the peer supervises. It is only recorded in the audit log.
    pub intercepted: bool,
}

impl Default for ListenMode {
    fn default() -> Self {
        Self { kept: true, intercepted: false }
    }
}

/// Request: open one listener. A repeated request with the same endpoint and options returns the same socket, if the broker
/// keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// The endpoint to bind.
    pub endpoint: Endpoint,
    /// The socket options.
    pub options: ListenOptions,
    /// The mode, if it is not the default one; in sessions with [`Features::LISTEN_MODE`] only.
    pub mode: Trailing<ListenMode>,
}

impl Listen {
    /// A request in the default mode.
    pub fn new(endpoint: Endpoint, options: ListenOptions) -> Self {
        Self { endpoint, options, mode: Trailing(None) }
    }

    /// The mode.
    pub fn mode(&self) -> ListenMode {
        self.mode.0.unwrap_or_default()
    }
}

/// One listener of a [`ListenMany`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenItem {
    /// The endpoint to bind.
    pub endpoint: Endpoint,
    /// The socket options.
    pub options: ListenOptions,
}

/// The reply to [`Listen`]; the socket is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// The listener's number, for use in [`Stop`].
    pub id: ListenerId,
}

/// Request: open several listeners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenMany {
    /// True: if one listener fails, none is opened. False: each listener succeeds or fails on its own.
    pub all_or_nothing: bool,
    /// The listeners, in order.
    pub listeners: List<ListenItem, MAX_DESCRIPTORS>,
    /// The mode of all of them, if it is not the default one; in sessions with [`Features::LISTEN_MODE`] only.
    pub mode: Trailing<ListenMode>,
}

impl ListenMany {
    /// A request for these listeners in the default mode; for the first 253 of them if there are more.
    pub fn truncated(all_or_nothing: bool, listeners: impl IntoIterator<Item = Listen>) -> Self {
        let items =
            listeners.into_iter().map(|Listen { endpoint, options, .. }| ListenItem { endpoint, options });
        Self { all_or_nothing, listeners: List::truncated(items), mode: Trailing(None) }
    }

    /// A request for each of the listeners.
    pub fn requests(&self) -> impl Iterator<Item = Listen> {
        self.listeners.iter().map(|ListenItem { endpoint, options }| Listen {
            endpoint: endpoint.clone(),
            options: options.clone(),
            mode: self.mode,
        })
    }
}

/// The result for one item of a request with several items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome<T> {
    /// The item succeeded.
    Done(T),
    /// The item failed.
    Fault(Fault),
}

impl<T> Outcome<T> {
    /// The fault, if the item failed.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Outcome::Done(_) => None,
            Outcome::Fault(fault) => Some(fault),
        }
    }
}

/// The reply to [`ListenMany`]. The sockets of the successful results are attached in the order of the results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListeningMany {
    /// One result per listener, in the order of the request. If `all_or_nothing` is set and one listener fails, every
    /// result is a fault and no socket is attached.
    pub results: List<Outcome<Listening>, MAX_DESCRIPTORS>,
}

/// Request: stop listeners. The broker disables each socket, so every copy of it stops receiving connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The numbers of the listeners.
    pub listeners: List<ListenerId, MAX_DESCRIPTORS>,
}

/// The reply to [`Stop`]: every listener of the request that this peer owned is stopped, and its endpoint is free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The numbers in the request that are not listeners of this peer. They are ignored.
    pub unknown: List<ListenerId, MAX_DESCRIPTORS>,
    /// The numbers of stopped listeners that the kernel did not let the broker revoke: a process that keeps a copy of the
    /// socket can listen on it again. The log and `status` name them with the cause.
    pub not_revoked: List<ListenerId, MAX_DESCRIPTORS>,
}

/// Request: return the broker's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRequest {
    /// List the listeners with a number higher than this one; 0 starts at the first.
    pub after: u64,
}
