//! The control socket: how `portreeve cluster` asks a coordinator and gives it orders.
//!
//! A connection has one request: a line of JSON with a [`Request`], at most [`MAX_REQUEST`] bytes. The reply is a line of
//! JSON with a [`Response`]. After the reply to `{"request":"events","follow":true}` each further line is a response with
//! events that are new. Reports are [`crate::core::report`]'s.
//!
//! Root and the coordinator's own user may do everything; others that can connect may only read.
//!
//! # For the program's loop
//!
//! ```text
//! node.collect_news();
//! let mut journal = Journal::default();
//! let (calls, mut incoming) = mpsc::channel(control::server::CALLS);
//! let (followers, _) = broadcast::channel(control::server::FOLLOWED);
//! tokio::spawn(control::server::serve(listener, calls, followers.clone())); // listener: tokio's UnixListener
//!
//! // after each step of the node
//! for event in journal.record(now, unix_ms, node.take_news()) {
//!     let _ = followers.send(event); // nobody follows
//! }
//!
//! // for each call
//! let call: Call = incoming.recv().await;
//! let view = View { node: &node, now, journal: &journal, around: &surroundings };
//! match control::answer(view, unix_ms, &call.by, call.request) {
//!     Answer::Now(response) => call.reply(response),
//!     // In a task of its own: the engine may take its time.
//!     Answer::Txn(txn, pending) => call.reply(pending.replied(engine.txn(txn).await)),
//!     // As well.
//!     Answer::Check(inspection) => call.reply(Response::Checks(inspection.judge(&engine.inspect().await, &files, now))),
//! }
//! ```
//!
//! [`server::serve`] bounds the number of connections, their time, and how much of the loop's time requests take; the loop
//! answers at most [`server::CALLS`] at once. Each [`Call`](server::Call) is already allowed. What the loop knows besides the
//! node, such as a conflict that the broker reports, it adds to the journal as a [`News`](crate::core::news::News).

mod answer;
mod order;
#[cfg(feature = "daemon")]
pub mod server;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::core::check::Checks;
use crate::core::news::Event;
use crate::core::record::Name;
use crate::core::report::{Explanation, Metrics, Plan, Status};

pub use answer::{Answer, answer};
pub use order::Pending;

/// The longest request in bytes, with the end of the line.
pub const MAX_REQUEST: usize = 4_096;
/// The longest response in bytes. A status of 10,000 addresses has about 3 MB.
pub const MAX_RESPONSE: usize = 64 << 20;
/// The longest text of a reason.
pub const MAX_WHY: usize = 200;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// [`Response::Status`].
    Status {},
    /// [`Response::Explanation`].
    Explain {
        /// The address.
        address: IpAddr,
    },
    /// [`Response::Plan`].
    Plan {
        /// As if this node were not in the cluster.
        #[serde(default)]
        without: Option<Name>,
    },
    /// [`Response::Metrics`].
    Metrics {},
    /// [`Response::Checks`]. It takes a few seconds if an endpoint of the engine does not answer.
    Check {},
    /// [`Response::Events`]: those that the coordinator remembers.
    Events {
        /// Send new ones as they happen.
        #[serde(default)]
        follow: bool,
    },
    /// Pins an address to a node.
    Move {
        /// The address.
        address: IpAddr,
        /// The node.
        node: Name,
        /// How long the pin lasts; `None`: until it is removed.
        #[serde(default)]
        for_ms: Option<u64>,
    },
    /// Removes a pin.
    Unpin {
        /// The address.
        address: IpAddr,
    },
    /// Takes a node out of use.
    Drain {
        /// The node.
        node: Name,
        /// Why.
        #[serde(default)]
        why: String,
        /// Also give up addresses that no other node can hold.
        #[serde(default)]
        release: bool,
    },
    /// Ends that.
    Undrain {
        /// The node.
        node: Name,
    },
    /// Stops voluntary moves.
    Freeze {
        /// Why.
        #[serde(default)]
        why: String,
    },
    /// Allows them again.
    Thaw {},
    /// Ends the session of a node at once.
    Evict {
        /// The node.
        node: Name,
        /// The caller vouches that the host is powered off.
        #[serde(default)]
        powered_off: bool,
    },
}

impl Request {
    /// Whether it changes something, so that only root and the coordinator's user may make it.
    pub fn is_order(&self) -> bool {
        !matches!(
            self,
            Request::Status {}
                | Request::Explain { .. }
                | Request::Plan { .. }
                | Request::Metrics {}
                | Request::Check {}
                | Request::Events { .. }
        )
    }
}

/// The response to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// The status.
    Status(Box<Status>),
    /// What is known of an address.
    Explanation(Box<Explanation>),
    /// The moves that the placement wants.
    Plan(Plan),
    /// The numbers.
    Metrics(Box<Metrics>),
    /// The checks.
    Checks(Box<Checks>),
    /// Events, the oldest first.
    Events(Vec<Event>),
    /// The order is in force.
    Done(Done),
    /// The request failed.
    Error(Fault),
}

/// What an order has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Whether it changed something; if not, everything was so already.
    pub changed: bool,
    /// What is now, in a sentence.
    pub text: String,
    /// What the operator may not expect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The kind of failure.
    pub code: FaultCode,
    /// What failed, and why.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Fault {
    /// A failure.
    pub fn new(code: FaultCode, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Fault { code, message: message.into(), remedy: remedy.into() }
    }
}

/// The kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultCode {
    /// The request cannot be read.
    Malformed,
    /// This user may only read.
    NoPermission,
    /// The coordinator has too many connections.
    Busy,
    /// No such node or address.
    NotFound,
    /// The order would harm, or needs a confirmation.
    Refused,
    /// Another order came between.
    Changed,
    /// The engine did not reply: the order may be performed or not.
    EngineUnreachable,
}

impl FaultCode {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            FaultCode::Malformed => "malformed",
            FaultCode::NoPermission => "no-permission",
            FaultCode::Busy => "busy",
            FaultCode::NotFound => "not-found",
            FaultCode::Refused => "refused",
            FaultCode::Changed => "changed",
            FaultCode::EngineUnreachable => "engine-unreachable",
        }
    }
}
