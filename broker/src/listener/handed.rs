//! Listeners that pass from one broker to the next: told with their sockets, taken in, let go.
//!
//! Promises: what is taken in is what the kernel says it is, and stays the other broker's, file and all, until
//! [`Registry::own`]; what is let go is neither shut down nor is its file removed.

use std::os::fd::OwnedFd;

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::ListenerId;
use portreeve_protocol::takeover::{ExportedListener, SocketFile};

use super::bind::Bound;
use super::entry::{Entry, Owner};
use super::registry::Registry;
use super::told::Told;
use crate::sys::unix_file::UnixFile;

/// Why a socket was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// It is something else than was said.
    #[error("the socket that came for {0} is no listener there")]
    Other(Endpoint),
    /// There is no room for another.
    #[error("{0} listeners are as many as this broker's limit of open files allows")]
    Full(usize),
    /// Two at one place.
    #[error("{0} came twice")]
    Twice(Endpoint),
}

/// What the configuration says of a listener that comes from another broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// Nothing: a peer asked for it.
    No,
    /// It is static, by this name.
    Static(String),
    /// It moves with its address, by this name.
    Moves(String),
}

impl Registry {
    /// Tells of at most `count` listeners after a number, `user` giving a session's.
    pub fn hand(&self, after: ListenerId, count: usize, user: impl Fn(u64) -> u32) -> Vec<ExportedListener> {
        self.after(after).take(count).map(|(id, entry)| one(id, entry, &user)).collect()
    }

    /// Tells of one listener, and whether it moves with its address.
    pub fn told(&self, id: ListenerId, user: impl Fn(u64) -> u32) -> Option<(ExportedListener, bool)> {
        let entry = self.entries.get(&id)?;
        Some((one(id, entry, &user), entry.moves))
    }

    /// The number for what comes with none.
    pub fn next_id(&self) -> ListenerId {
        ListenerId(self.last + 1)
    }

    /// How another broker knows the control socket's file.
    pub fn control_file(&self) -> Option<SocketFile> {
        self.control.as_ref().map(UnixFile::told)
    }

    /// Numbers what this broker bound itself anew, from the one after `last` on: nobody knows it yet.
    pub fn renumber(&mut self, last: ListenerId) {
        for entry in std::mem::take(&mut self.entries).into_values() {
            self.last = self.last.max(last.0) + 1;
            self.by_endpoint.insert(entry.endpoint.clone(), ListenerId(self.last));
            self.entries.insert(ListenerId(self.last), entry);
            self.changed(ListenerId(self.last));
        }
    }

    /// Takes in what another broker handed over.
    ///
    /// # Errors
    /// It is not what was said, or has no room.
    pub fn take_in(&mut self, told: ExportedListener, socket: OwnedFd, named: Named) -> Result<(), NotTaken> {
        let ExportedListener { id, endpoint, options, user, file } = told;
        if !Told::of(&socket).is_some_and(|found| found.is(&endpoint)) {
            return Err(NotTaken::Other(endpoint));
        }
        if self.count() >= self.capacity() {
            return Err(NotTaken::Full(self.capacity()));
        }
        if self.by_endpoint.contains_key(&endpoint) || self.entries.contains_key(&id) {
            return Err(NotTaken::Twice(endpoint));
        }
        // Where its file is gone or another's there is none to remove one day.
        let file = match (&endpoint, file) {
            (Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path), Some(file)) => {
                UnixFile::of_another(&self.directories, path, file).ok().map(Box::new)
            }
            _ => None,
        };
        let (owner, name, moves) = match (named, user) {
            (Named::Static(name), _) => (Owner::Worker, Some(name.into()), false),
            (Named::Moves(name), _) => (Owner::Worker, Some(name.into()), true),
            (Named::No, None) => (Owner::Worker, None, false),
            (Named::No, Some(user)) => (Owner::Former(user), None, false),
        };
        self.enter(id, endpoint, &options, Bound { socket, file }, owner);
        if let Some(entry) = self.entries.get_mut(&id) {
            (entry.name, entry.moves) = (name, moves);
        }
        Ok(())
    }

    /// From now on what was taken in is this broker's own.
    pub fn own(&mut self) {
        let files = self.entries.values_mut().filter_map(|entry| entry.bound.file.as_deref_mut());
        files.chain(&mut self.control).for_each(UnixFile::own);
    }

    /// Forgets everything: it is another broker's.
    pub fn let_go(&mut self) {
        self.entries.clear();
        self.by_endpoint.clear();
        self.counts.clear();
        self.control = None;
    }
}

fn one(id: ListenerId, entry: &Entry, user: &impl Fn(u64) -> u32) -> ExportedListener {
    let user = match entry.owner {
        Owner::Worker => None,
        Owner::Session(number) => Some(user(number)),
        Owner::Former(user) => Some(user),
    };
    let endpoint = Endpoint::clone(&entry.endpoint);
    let options = entry.options.as_deref().cloned().unwrap_or_default();
    let file = entry.bound.file.as_deref().map(UnixFile::told);
    ExportedListener { id, endpoint, options, user, file }
}
