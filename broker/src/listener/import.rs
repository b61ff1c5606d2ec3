//! Importing listeners from the predecessor or from the descriptor store.
//!
//! Promises: the kernel confirms the endpoint of an imported socket. The socket and its file belong to the predecessor
//! until [`Registry::commit_import`].

use std::os::fd::OwnedFd;

use portreeve_protocol::Endpoint;
use portreeve_protocol::message::ListenerId;
use portreeve_protocol::takeover::{ExportedListener, SocketFile};

use super::bind::Bound;
use super::bound_socket::BoundSocket;
use super::entry::{NewEntry, Owner};
use super::overlap::interface_name;
use super::registry::Registry;
use super::stop::not_revoked;
use super::vrf::bind_to_device;
use crate::holder::Holder;
use crate::sys::unix_file::UnixFile;

/// Why a socket was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The kernel describes another socket: its holder has connected it or shut it down, or another socket was passed.
    #[error("cannot import the listener on {0}: the passed socket does not listen there")]
    Mismatch(Endpoint),
    /// The registry is full.
    #[error("cannot import a listener: the limit of open files allows only {0} listeners")]
    Full(usize),
    /// Its number or endpoint exists already.
    #[error("cannot import the listener on {0}: it was passed twice")]
    Duplicate(Endpoint),
}

/// A socket that was passed and could not be imported.
#[derive(Debug)]
pub struct RejectedSocket {
    endpoint: Endpoint,
    user: Option<u32>,
    socket: OwnedFd,
    file: Option<Box<UnixFile>>,
}

/// How the configuration declares an imported listener of the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Configured {
    /// Not at all: a peer requested it.
    No,
    /// It is static and has this name.
    Static(String),
    /// It is floating and has this name.
    Floating(String),
}

impl Registry {
    /// The number for an imported listener that has none.
    pub fn next_id(&self) -> ListenerId {
        ListenerId(self.last + 1)
    }

    /// Gives new numbers, after `last`, to the listeners that this broker bound itself: no peer knows their numbers yet.
    pub fn renumber(&mut self, last: ListenerId) {
        for (before, entry) in std::mem::take(&mut self.entries) {
            self.last = self.last.max(last.0) + 1;
            self.overlaps.renumber(before, ListenerId(self.last), &entry.endpoint);
            self.by_endpoint.insert(entry.endpoint.clone(), ListenerId(self.last));
            self.entries.insert(ListenerId(self.last), entry);
            self.record_change(ListenerId(self.last));
        }
    }

    /// Imports a listener. One that a user requested stays that user's, whatever the configuration declares.
    ///
    /// # Errors
    /// The socket is not what was exported, or there is no room for it.
    pub fn import(
        &mut self,
        exported: ExportedListener,
        socket: OwnedFd,
        configured: Configured,
    ) -> Result<(), ImportError> {
        let ExportedListener { id, endpoint, options, user, file } = exported;
        // If the file has been removed or replaced, there is no file to remove later.
        let file = self.import_file(&endpoint, file).map(Box::new);
        let interface = endpoint.inet().map_or("", |inet| interface_name(inet, &options.device));
        if !interface.is_empty() && !self.contains(&endpoint) {
            // Its interface may have been deleted and made again. If that fails, status and log say so.
            let _ = bind_to_device(&socket, Some(interface));
        }
        if !BoundSocket::of(&socket).is_some_and(|bound| bound.is_at(&endpoint)) {
            // Its holder may have shut it down or connected it.
            let rejected = RejectedSocket { endpoint: endpoint.clone(), user, socket, file };
            self.rejected.push(rejected);
            return Err(ImportError::Mismatch(endpoint));
        }
        if self.count() >= self.capacity() {
            return Err(ImportError::Full(self.capacity()));
        }
        if self.contains(&endpoint) || self.entries.contains_key(&id) {
            return Err(ImportError::Duplicate(endpoint));
        }
        let (owner, name, floating) = match (user, configured) {
            (None, Configured::Static(name)) => (Owner::Worker, Some(name.into()), false),
            (None, Configured::Floating(name)) => (Owner::Worker, Some(name.into()), true),
            (None, Configured::No) => (Owner::Worker, None, false),
            // Processes of that user have copies of the socket, so it never becomes the worker's.
            (Some(user), _) => (Owner::Former(user), None, false),
        };
        let revocability = self.revocation.import(&endpoint, &socket);
        let bound = Bound { socket: Some(socket), file, revocability };
        let new = NewEntry::new(endpoint, &options, bound, owner, user);
        self.insert_as(id, NewEntry { name, floating, ..new });
        Ok(())
    }

    fn import_file(&self, endpoint: &Endpoint, file: Option<SocketFile>) -> Option<UnixFile> {
        match endpoint {
            Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path) => {
                UnixFile::import(&self.directories, path, file?).ok()
            }
            Endpoint::Tcp(_) | Endpoint::Udp(_) => None,
        }
    }

    /// Whether the file of an exported Unix socket still exists at its path.
    pub fn has_file(&self, exported: &ExportedListener) -> bool {
        self.import_file(&exported.endpoint, exported.file).is_some()
    }

    /// Takes ownership of everything that was imported, and revokes every other socket in the allowlist.
    pub fn commit_import(&mut self) {
        self.revoke_others();
        self.revoke_rejected();
        self.own_files();
        self.control_file.iter_mut().for_each(UnixFile::commit_import);
    }

    /// Takes ownership of the files of imported listeners: they are removed when their listeners stop.
    pub fn own_files(&mut self) {
        let files = self.entries.values_mut().filter_map(|entry| entry.bound.file.as_deref_mut());
        files.for_each(UnixFile::commit_import);
    }

    /// Revokes the sockets that were passed and could not be imported.
    pub fn revoke_rejected(&mut self) {
        for RejectedSocket { endpoint, user, socket, file } in std::mem::take(&mut self.rejected) {
            if let Some(mut file) = file {
                file.commit_import();
                file.remove(&self.directories);
            }
            let revocability = self.revocation.import(&endpoint, &socket);
            if let Err(errno) = self.revocation.revoke(revocability, Some(&socket)) {
                self.note_not_revoked(&not_revoked(&endpoint, errno));
            }
            if endpoint.inet().is_some() {
                self.stopped.keep(endpoint.into(), Holder::of_user(user), socket);
            }
        }
    }
}
