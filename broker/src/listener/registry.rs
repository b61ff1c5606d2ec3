//! Every listener of the broker: its owner, its socket, and the indexes by number, endpoint and owner.
//!
//! The broker keeps a copy of each socket. A repeated request gets the same socket again, so a descriptor that did not
//! reach the peer is not lost. Nothing here consults policy.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;

use nix::errno::Errno;
use portreeve_protocol::message::ListenerId;
use portreeve_protocol::{Endpoint, Fault, FaultCode};

use super::change_queue::ChangeQueue;
use super::disable::DropFilter;
use super::entry::{Entry, NewEntry, Owner};
use super::fault::{BindError, BindPrivileges, RequestedBy, in_use_at};
use crate::capability::CapabilitySet;
use crate::sys::SocketDirectories;
use crate::sys::unix_file::UnixFile;

/// All listeners.
#[derive(Debug)]
pub struct Registry {
    /// Boxed, because a node of the tree is often half empty.
    pub(super) entries: BTreeMap<ListenerId, Box<Entry>>,
    pub(super) by_endpoint: HashMap<Rc<Endpoint>, ListenerId>,
    /// The number of listeners of each owner that has any.
    pub(super) counts: HashMap<Owner, usize>,
    /// The last number that was assigned.
    pub(super) last: u64,
    capacity: usize,
    pub(super) filter: DropFilter,
    pub(super) directories: SocketDirectories,
    /// The file of the control socket, which is removed with those of the listeners.
    pub(super) control_file: Option<UnixFile>,
    changes: Option<Rc<ChangeQueue>>,
    privileges: BindPrivileges,
}

/// Removes the files of all sockets, even if the start fails.
impl Drop for Registry {
    fn drop(&mut self) {
        let listeners = self.entries.values().filter_map(|entry| entry.bound.file.as_deref());
        listeners.chain(&self.control_file).for_each(|file| file.remove(&self.directories));
    }
}

impl Registry {
    /// An empty registry with room for `capacity` listeners, which disables sockets with this filter and binds Unix
    /// sockets in these directories.
    pub fn new(
        capacity: usize,
        filter: DropFilter,
        directories: SocketDirectories,
        privileges: BindPrivileges,
    ) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_endpoint: HashMap::new(),
            counts: HashMap::new(),
            last: 0,
            capacity,
            filter,
            directories,
            control_file: None,
            changes: None,
            privileges,
        }
    }

    /// Records changes in this queue from now on.
    pub fn record_changes_in(&mut self, changes: Rc<ChangeQueue>) {
        self.changes = Some(changes);
    }

    pub(super) fn record_change(&self, id: ListenerId) {
        self.changes.iter().for_each(|changes| changes.push(id));
    }

    /// Keeps the file of the control socket, to remove it at the end.
    pub fn set_control_file(&mut self, file: UnixFile) {
        self.control_file = Some(file);
    }

    /// The directories of Unix sockets.
    pub fn directories(&self) -> &SocketDirectories {
        &self.directories
    }

    /// The directories of Unix sockets, to be replaced by those of the empty root.
    pub fn directories_mut(&mut self) -> &mut SocketDirectories {
        &mut self.directories
    }

    /// Adjusts the registry to the confined broker, which has these capabilities: finds out whether it can still disable
    /// sockets, and returns whether it can.
    ///
    /// # Errors
    /// The scratch socket for that cannot be opened.
    pub fn set_confined(&mut self, capabilities: CapabilitySet) -> nix::Result<bool> {
        self.privileges = BindPrivileges { capabilities, confined: true, ..self.privileges };
        self.filter = std::mem::replace(&mut self.filter, DropFilter::Unavailable).verified()?;
        Ok(!matches!(self.filter, DropFilter::Unavailable))
    }

    /// Refuses if there is no room for another listener.
    pub(super) fn check_capacity(&self) -> Result<(), Fault> {
        if self.entries.len() < self.capacity {
            return Ok(());
        }
        let message = format!(
            "cannot listen: the broker's limit of open files allows only {} listeners",
            self.capacity
        );
        Err(Fault::new(FaultCode::Quota, &message).remedy(
            "stop listeners, or start portreeved with a higher limit of open files (LimitNOFILE=, ulimit -n)",
        ))
    }

    /// The fault of a socket that could not be bound. An endpoint may be in use by a listener of this broker at another
    /// endpoint: a wildcard address and a specific one overlap.
    pub(super) fn bind_fault(&self, error: BindError, endpoint: &Endpoint, by: RequestedBy) -> Fault {
        let same_port = |other: &&Entry| {
            std::mem::discriminant(&*other.endpoint) == std::mem::discriminant(endpoint)
                && other.endpoint.inet().map(|inet| inet.port) == endpoint.inet().map(|inet| inet.port)
                && endpoint.inet().is_some()
        };
        match self.entries.values().map(|entry| &**entry).find(same_port) {
            Some(other) if error.errno == Errno::EADDRINUSE => {
                in_use_at(endpoint, &other.endpoint, other.owner)
            }
            _ => error.fault(endpoint, by, &self.privileges),
        }
    }

    /// Inserts a listener under the next number.
    pub(super) fn insert(&mut self, new: NewEntry) -> ListenerId {
        let id = ListenerId(self.last + 1);
        self.insert_as(id, new);
        id
    }

    /// Inserts a listener under an unused number.
    pub(super) fn insert_as(&mut self, id: ListenerId, new: NewEntry) {
        self.last = self.last.max(id.0);
        let endpoint = Rc::new(new.endpoint);
        self.by_endpoint.insert(endpoint.clone(), id);
        *self.counts.entry(new.owner).or_default() += 1;
        let entry = Entry {
            endpoint,
            owner: new.owner,
            name: new.name,
            floating: new.floating,
            retained_until: None,
            options: new.options,
            bound: new.bound,
        };
        self.entries.insert(id, Box::new(entry));
        self.record_change(id);
    }

    /// A listener.
    pub fn entry(&self, id: ListenerId) -> Option<&Entry> {
        self.entries.get(&id).map(|entry| &**entry)
    }

    /// The socket of a listener.
    pub fn socket(&self, id: ListenerId) -> Option<BorrowedFd<'_>> {
        Some(self.entries.get(&id)?.bound.socket.as_fd())
    }

    /// The number of the listener at an endpoint.
    pub fn id_at(&self, endpoint: &Endpoint) -> Option<ListenerId> {
        self.by_endpoint.get(endpoint).copied()
    }

    /// The owner of the listener at an endpoint.
    pub fn owner_at(&self, endpoint: &Endpoint) -> Option<Owner> {
        Some(self.entry(self.id_at(endpoint)?)?.owner)
    }

    /// Whether there is a listener at this endpoint.
    pub fn contains(&self, endpoint: &Endpoint) -> bool {
        self.by_endpoint.contains_key(endpoint)
    }

    /// The largest number of listeners.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The number of listeners.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The number of listeners of an owner.
    pub fn count_of(&self, owner: Owner) -> usize {
        self.counts.get(&owner).copied().unwrap_or_default()
    }

    /// The numbers of an owner's listeners.
    pub fn ids_of(&self, owner: Owner) -> Vec<ListenerId> {
        self.entries.iter().filter(|(_, entry)| entry.owner == owner).map(|(id, _)| *id).collect()
    }

    /// The listeners whose numbers are above this one, in order.
    pub fn iter_after(&self, id: ListenerId) -> impl Iterator<Item = (ListenerId, &Entry)> {
        self.entries.range((Excluded(id), Unbounded)).map(|(id, entry)| (*id, &**entry))
    }
}
