//! Resource limits on the wire.

use serde::{Deserialize, Serialize};

use crate::bounded::Text;

/// No limit: RLIM_INFINITY, see getrlimit(2).
pub const UNLIMITED: u64 = u64::MAX;

/// Asks for a resource limit of the peer's own process, the one that connected to the control socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLimit {
    /// The resource, as getrlimit(2) names it, in lower case and without `RLIMIT_`: `nofile`.
    pub resource: Text<16>,
    /// The soft limit, in the resource's own unit; absent to leave it.
    pub soft: Option<u64>,
    /// The hard limit; absent to leave it.
    pub hard: Option<u64>,
}

/// The reply to [`SetLimit`]: the limit in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentLimit {
    /// The resource.
    pub resource: Text<16>,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}
