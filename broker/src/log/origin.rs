//! The origin of a log line: the peer whose requests cause it.

use std::cell::Cell;
use std::fmt;

use super::buffer::Weight;
use crate::holder::Holder;

/// The peer whose requests cause a line, or the broker itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The broker itself.
    Broker,
    /// The worker.
    Worker,
    /// A user of the control socket.
    User(u32),
    /// All users of the control socket that no `peer` scope names.
    Strangers,
}

impl Origin {
    /// Whether it has a reserve that users other than root cannot use up.
    pub fn is_trusted(self) -> bool {
        matches!(self, Origin::Broker | Origin::Worker | Origin::User(0))
    }
}

impl From<Holder> for Origin {
    fn from(holder: Holder) -> Self {
        match holder {
            Holder::Worker => Origin::Worker,
            Holder::User(uid) => Origin::User(uid),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Broker => out.write_str("the broker"),
            Origin::Worker => out.write_str("the worker"),
            Origin::User(uid) => write!(out, "user {uid}"),
            Origin::Strangers => out.write_str("users without a peer scope"),
        }
    }
}

thread_local! {
    static CURRENT: Cell<(Origin, Weight)> = const { Cell::new((Origin::Broker, Weight::Record)) };
}

/// The origin and the weight of the lines that this thread logs now.
pub(super) fn current() -> (Origin, Weight) {
    CURRENT.get()
}

/// Sets both while a function runs. A call within such a function changes them for its own lines.
pub(super) fn set_during<T>(line: (Origin, Weight), call: impl FnOnce() -> T) -> T {
    struct Restore((Origin, Weight));
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(line));
    call()
}
