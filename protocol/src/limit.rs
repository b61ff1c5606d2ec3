//! Messages about resource limits; see getrlimit(2).

use serde::{Deserialize, Serialize};

use crate::bounded::Text;

/// The value that means no limit: RLIM_INFINITY.
pub const UNLIMITED: u64 = u64::MAX;

/// Request: set a resource limit of the process that connected to the control socket. With neither `soft` nor `hard`,
/// the request only reads the limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLimit {
    /// The resource: its name in getrlimit(2), in lower case and without `RLIMIT_`, such as `nofile`.
    pub resource: Text<16>,
    /// The soft limit in the unit of the resource; `None` keeps the current one.
    pub soft: Option<u64>,
    /// The hard limit in the unit of the resource; `None` keeps the current one.
    pub hard: Option<u64>,
}

/// The reply to [`SetLimit`]: the limit after the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentLimit {
    /// The resource.
    pub resource: Text<16>,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}
