//! The holder of leases, which quotas and events refer to. Data only.

use std::fmt;

/// The owner of an address. It outlives sessions: a peer that reconnects has the same leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The worker, in whichever process it runs.
    Worker,
    /// A user of the control socket, by uid.
    User(u32),
}

impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Worker => out.write_str("the worker"),
            Holder::User(uid) => write!(out, "user {uid}"),
        }
    }
}
