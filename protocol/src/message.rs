//! The operations: each request, its reply and its number.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::address::{
    AddAddress, AddressPage, Announce, Leases, Link, ListAddresses, MoveAddress, Removals, RemoveAddress,
    RenewAddress, SetLink,
};
use crate::bounded::{List, Text};
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

/// A request that has a number and a reply.
pub trait Operation: Serialize + DeserializeOwned {
    /// The request's kind in the frame.
    const KIND: Kind;
    /// The word for it in policy, audit lines and metrics.
    const NAME: &'static str;
    /// What comes back when it is not a fault.
    type Reply: Serialize + DeserializeOwned;
}

macro_rules! operations {
    ($($number:literal $name:literal $request:ident -> $reply:ident;)*) => {
        $(impl Operation for $request {
            const KIND: Kind = Kind($number);
            const NAME: &'static str = $name;
            type Reply = $reply;
        })*

        /// Every operation's kind and name, in the order of their numbers.
        pub const OPERATIONS: &[(Kind, &str)] = &[$((Kind($number), $name)),*];
    };
}

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
}

/// A listener's number: never 0 and never used again while the broker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerId(pub u64);

/// The first request of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// How the peer calls itself in logs and in `status`. Believed for nothing.
    pub client: Text<64>,
    /// Optional features that the peer knows, a bit each. None is defined yet: 0.
    pub features: u64,
}

/// The reply to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The broker's process id in its own pid namespace.
    pub broker: u32,
    /// The broker's release.
    pub release: Text<32>,
    /// The features that both sides know.
    pub features: u64,
    /// The broker's effective capabilities, a bit each. See capabilities(7).
    pub capabilities: u64,
    /// Who the broker takes the peer for.
    pub peer: Text<64>,
    /// The operations that this peer may ask for, by name.
    pub operations: List<Text<16>, 32>,
}

/// Asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {}

/// The reply to [`Ping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {}

/// How the socket of a listener is made. What is `None` is as the configuration says for this endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn. See listen(2).
    pub backlog: Option<u32>,
    /// SO_REUSEPORT, so that several sockets may share the endpoint. See socket(7).
    pub reuse_port: bool,
    /// Accept IPv4 too on an IPv6 wildcard; off (IPV6_V6ONLY set) unless asked for. See ipv6(7).
    pub dual_stack: bool,
    /// IP_FREEBIND: bind an address that is not, or not yet, on this host. See ip(7).
    pub free_bind: bool,
    /// SO_BINDTODEVICE: only packets of this interface; empty for all. See socket(7).
    pub device: Text<MAX_INTERFACE>,
    /// SO_RCVBUF in bytes, 0 to let the system decide.
    pub receive_buffer: Option<u32>,
    /// SO_SNDBUF in bytes, 0 to let the system decide.
    pub send_buffer: Option<u32>,
    /// TCP_NODELAY, which accepted connections inherit. See tcp(7).
    pub no_delay: Option<bool>,
    /// TCP_DEFER_ACCEPT in seconds: wake the worker when data has arrived. 0 is off.
    pub defer_accept: u32,
    /// TCP_FASTOPEN: how many connections may be pending before their handshake is over. 0 is off.
    pub fast_open: u32,
    /// The permission bits of a Unix socket's file.
    pub mode: Option<u32>,
}

/// Asks for one listener. Asking again for the same endpoint gives the same socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// Where.
    pub endpoint: Endpoint,
    /// How.
    pub options: ListenOptions,
}

/// The reply to [`Listen`]; the socket rides with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// The listener's number, for [`Stop`].
    pub id: ListenerId,
}

/// Asks for many listeners at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenMany {
    /// Fail them all where one fails; otherwise each stands for itself.
    pub all_or_nothing: bool,
    /// The listeners, in order.
    pub listeners: List<Listen, MAX_DESCRIPTORS>,
}

/// One result of many. [`serde`]'s own `Result` has no spare variant for growth either: a later version adds
/// an operation instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome<T> {
    /// It succeeded.
    Done(T),
    /// It did not.
    Fault(Fault),
}

impl<T> Outcome<T> {
    /// Why it did not succeed, where it did not.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Outcome::Done(_) => None,
            Outcome::Fault(fault) => Some(fault),
        }
    }
}

/// The reply to [`ListenMany`]: a result each; the sockets of those that succeeded ride with it in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListeningMany {
    /// The results, in the order of the request. With `all_or_nothing` and a failure no socket rides along
    /// and every result is a fault.
    pub results: List<Outcome<Listening>, MAX_DESCRIPTORS>,
}

/// Asks that listeners be taken out of service. Nobody can serve on them afterwards, whoever kept a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Which ones.
    pub listeners: List<ListenerId, MAX_DESCRIPTORS>,
}

/// The reply to [`Stop`]: those that were this peer's are out of service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The numbers that were no listener of this peer's; nothing was done for them.
    pub unknown: List<ListenerId, MAX_DESCRIPTORS>,
}

/// Asks for the broker's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRequest {
    /// List the listeners after this one; 0 to begin.
    pub after: u64,
}
