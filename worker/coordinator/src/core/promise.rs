//! What nodes tell each other while the engine is out: a holder asks every node that may evict it for a promise not to do so,
//! and keeps its addresses as long as all promise.

use serde::{Deserialize, Serialize};

use super::record::Name;

/// A holder asks a node not to evict it for D, counted from when the request arrives.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PromiseRequest {
    /// The node that is asked.
    pub to: Name,
    /// The holder.
    pub node: Name,
    /// The nonce of the holder's session.
    pub nonce: u64,
    /// The random number of the holder's process, without which numbers of two processes could be mixed up.
    pub process: u64,
    /// Differs in each round of requests of that process.
    pub number: u64,
    /// The holder's lease.
    pub lease_ms: u32,
    /// How late the kernel of the holder's host may end an address.
    pub late_ms: u32,
}

/// The reply to a [`PromiseRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PromiseReply {
    /// The node that was asked.
    pub node: Name,
    /// As in the request.
    pub process: u64,
    /// As in the request.
    pub number: u64,
    /// What it says.
    pub answer: PromiseAnswer,
}

/// What a node replies to a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromiseAnswer {
    /// It does not evict the holder for D.
    Promised,
    /// It does not promise: the engine replies to it, so the holder alone is cut off.
    EngineReplies,
    /// It cannot promise: it has seen no beat of this session that was written since its process started. A request of the
    /// process before it, to evict the holder, may still be on its way.
    Unseen,
    /// It cannot promise: it has asked the engine to evict the holder, and the engine may still do so.
    Evicting,
}

impl PromiseAnswer {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            PromiseAnswer::Promised => "promised",
            PromiseAnswer::EngineReplies => "engine-replies",
            PromiseAnswer::Unseen => "unseen",
            PromiseAnswer::Evicting => "evicting",
        }
    }
}
