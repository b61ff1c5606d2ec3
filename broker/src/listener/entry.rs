//! One listener in the registry. There may be ten thousand, so rare fields are boxed.

use std::rc::Rc;
use std::time::Instant;

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::ListenOptions;

use super::bind::Bound;
use crate::holder::Holder;

/// Who owns a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The worker, whichever process that is: the next worker adopts the listener.
    Worker,
    /// A session of the control socket: the listener stops when the session ends.
    Session(u64),
    /// The user of a session that the predecessor had before this broker took over: the next session of that user adopts
    /// the listener.
    Former(u32),
}

/// One listener.
#[derive(Debug)]
pub struct Entry {
    /// Where it listens; shared with the index by endpoint.
    pub endpoint: Rc<Endpoint>,
    /// Who owns it.
    pub owner: Owner,
    /// The user whose it is, through all sessions of that user; none for the worker. It never changes.
    pub user: Option<u32>,
    /// The name of a configured listener, static or floating. A static one reaches the worker under it: LISTEN_FDNAMES.
    pub name: Option<Box<str>>,
    /// A floating listener: it starts and stops with its floating address.
    pub floating: bool,
    /// When it stops, unless its owner's successor adopts it first.
    pub retained_until: Option<Instant>,
    /// The requested options, if they differ from the default.
    pub(super) options: Option<Box<ListenOptions>>,
    /// The options with which the socket was opened, if the broker does not keep it.
    pub(super) unkept: Option<Box<ListenOptions>>,
    pub(super) bound: Bound,
}

impl Entry {
    /// Whose it is, through all sessions.
    pub fn holder(&self) -> Holder {
        Holder::of_user(self.user)
    }

    /// Whether the broker keeps a copy of its socket.
    pub fn is_kept(&self) -> bool {
        self.unkept.is_none()
    }

    /// Whether it listens for IPv4 too.
    pub fn is_dual_stack(&self) -> bool {
        self.options.as_ref().is_some_and(|options| options.dual_stack)
    }

    /// Whether it was requested with these options.
    pub fn has_options(&self, options: &ListenOptions) -> bool {
        match &self.options {
            Some(requested) => **requested == *options,
            None => *options == ListenOptions::default(),
        }
    }
}

/// A listener that is not in the registry yet.
#[derive(Debug)]
pub(super) struct NewEntry {
    pub endpoint: Endpoint,
    pub options: Option<Box<ListenOptions>>,
    pub unkept: Option<Box<ListenOptions>>,
    pub bound: Bound,
    pub owner: Owner,
    pub user: Option<u32>,
    pub name: Option<Box<str>>,
    pub floating: bool,
}

impl NewEntry {
    /// A listener that a peer requested. `user` is the peer's; `None` for the worker.
    pub fn new(
        endpoint: Endpoint,
        options: &ListenOptions,
        bound: Bound,
        owner: Owner,
        user: Option<u32>,
    ) -> Self {
        let options = (*options != ListenOptions::default()).then(|| Box::new(options.clone()));
        Self { endpoint, options, unkept: None, bound, owner, user, name: None, floating: false }
    }

    /// A listener of the configuration: it belongs to the worker and has the default options.
    pub fn configured(endpoint: Endpoint, bound: Bound, name: &str, floating: bool) -> Self {
        let name = Some(name.into());
        Self {
            endpoint,
            options: None,
            unkept: None,
            bound,
            owner: Owner::Worker,
            user: None,
            name,
            floating,
        }
    }
}
