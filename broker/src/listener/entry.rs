//! One listener as the broker keeps it. There may be ten thousand, so what is rare is boxed.

use std::rc::Rc;
use std::time::Instant;

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::ListenOptions;

use super::bind::Bound;

/// Whose a listener is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The worker's, whichever process that is: its successor adopts it.
    Worker,
    /// A control-socket session's; it ends with the session.
    Session(u64),
    /// Of a user whose session another broker had, before this one took over: that user's next session adopts it.
    Former(u32),
}

/// One listener.
#[derive(Debug)]
pub struct Entry {
    /// Where it listens; shared with the index.
    pub endpoint: Rc<Endpoint>,
    /// Whose it is.
    pub owner: Owner,
    /// The name of a listener that the configuration starts: under it a static one reaches the worker, LISTEN_FDNAMES.
    pub name: Option<Box<str>>,
    /// It started with its address and stops with it.
    pub moves: bool,
    /// When it ends, unless the worker's successor asks for it first.
    pub retained_until: Option<Instant>,
    /// What was asked for, where it was anything.
    pub(super) options: Option<Box<ListenOptions>>,
    pub(super) bound: Bound,
}

impl Entry {
    /// Whether it listens for IPv4 too.
    pub fn is_dual_stack(&self) -> bool {
        self.options.as_ref().is_some_and(|options| options.dual_stack)
    }

    /// Whether a request with these options asks for the same.
    pub fn was_asked_with(&self, options: &ListenOptions) -> bool {
        match &self.options {
            Some(asked) => **asked == *options,
            None => *options == ListenOptions::default(),
        }
    }
}
