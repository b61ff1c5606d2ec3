//! The holder of leases, which quotas and events refer to. Data only.

use std::fmt;

/// The owner of an address. It outlives sessions: a peer that reconnects has the same leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    /// The worker, in whichever process it runs.
    Worker,
    /// A user of the control socket, by uid.
    User(u32),
}

impl Holder {
    /// Root's clients, on the control socket.
    pub const ROOT: Self = Holder::User(0);

    /// The holder with this user id; `None` is the worker.
    pub fn of_user(uid: Option<u32>) -> Self {
        uid.map_or(Holder::Worker, Holder::User)
    }

    /// Its user id; `None` for the worker.
    pub fn user(self) -> Option<u32> {
        match self {
            Holder::Worker => None,
            Holder::User(uid) => Some(uid),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Worker => out.write_str("the worker"),
            Holder::User(uid) => write!(out, "user {uid}"),
        }
    }
}
