//! The origin of a log line: the peer whose requests cause it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use portreeve_protocol::printable::Escaped;

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

/// A peer as log lines show it: with the name of the user, if the configuration has it.
pub fn named(peer: impl Into<Origin>) -> impl fmt::Display {
    struct Named(Origin);
    impl fmt::Display for Named {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(out)?;
            match self.0 {
                Origin::User(uid) => {
                    user_names().get(&uid).map_or(Ok(()), |name| write!(out, " ({})", Escaped(name)))
                }
                _ => Ok(()),
            }
        }
    }
    Named(peer.into())
}

/// The names of the users that the configuration names.
static USER_NAMES: RwLock<BTreeMap<u32, String>> = RwLock::new(BTreeMap::new());

fn user_names() -> RwLockReadGuard<'static, BTreeMap<u32, String>> {
    USER_NAMES.read().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the names of users. While the broker serves, it uses no name service, so lines have only these names.
pub fn set_user_names(mut names: BTreeMap<u32, String>) {
    names.entry(0).or_insert_with(|| "root".to_owned());
    *USER_NAMES.write().unwrap_or_else(PoisonError::into_inner) = names;
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
