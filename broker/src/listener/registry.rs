//! Every listener of the broker: its owner, its socket, and the indexes by number, endpoint and owner.
//!
//! The broker keeps a copy of each socket, unless the peer has requested that it does not: see `unkept`. A repeated request gets
//! the same socket again, so a descriptor that did not reach the peer is not lost. Nothing here consults policy.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};

use nix::errno::Errno;
use portreeve_protocol::message::{ListenOptions, ListenerId};
use portreeve_protocol::{Endpoint, Fault, FaultCode};
use tokio::sync::Notify;

use super::change_queue::ChangeQueue;
use super::drain::DrainingEntry;
use super::entry::{Entry, NewEntry, Owner};
use super::fault::{BindError, BindPrivileges, RequestedBy, in_use_by_stopped};
use super::import::RejectedSocket;
use super::overlap::{OverlapIndex, Reach};
use super::revocation::{Enforcement, Revocation};
use super::stopped_sockets::StoppedSockets;
use crate::capability::CapabilitySet;
use crate::holder::Holder;
use crate::sys::SocketDirectories;
use crate::sys::unix_file::UnixFile;

/// How many stopped listeners that were not revoked `status` names: the last ones.
const MAX_NOT_REVOKED: usize = 8;

/// All listeners.
#[derive(Debug)]
pub struct Registry {
    /// Boxed, because a node of the tree is often half empty.
    pub(super) entries: BTreeMap<ListenerId, Box<Entry>>,
    pub(super) by_endpoint: HashMap<Rc<Endpoint>, ListenerId>,
    pub(super) overlaps: OverlapIndex,
    /// The number of listeners of each owner that has any.
    pub(super) counts: BTreeMap<Owner, usize>,
    /// The last number that was assigned.
    pub(super) last: u64,
    capacity: usize,
    pub(super) revocation: Revocation,
    /// Whether processes that workers have left may use the worker's listeners.
    pub(super) is_used_by_descendants: bool,
    /// Listeners that are about to close.
    pub(super) draining: Vec<Weak<DrainingEntry>>,
    /// Sockets of listeners that were stopped a moment ago.
    pub(super) stopped: StoppedSockets,
    /// Notified when nearly all of many listeners have stopped.
    pub(super) emptied: Rc<Notify>,
    /// The last listener of which it was found out whether its holder has closed it, when its holder reached a quota.
    pub(super) last_probed: ListenerId,
    /// Sockets that are not what they were exported as.
    pub(super) rejected: Vec<RejectedSocket>,
    /// The listeners that stopped, and that the kernel did not let the broker revoke.
    not_revoked: RefCell<VecDeque<String>>,
    /// The optional listeners of the configuration that are not open, each with the cause.
    unopened: Vec<(Endpoint, String)>,
    /// The listeners that receive nothing because they are not bound to their interface, with the cause.
    pub(super) without_interface: BTreeMap<ListenerId, String>,
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
    /// An empty registry with room for `capacity` listeners, which it revokes in this way, and which binds Unix sockets in
    /// these directories.
    pub fn new(
        capacity: usize,
        revocation: Revocation,
        directories: SocketDirectories,
        privileges: BindPrivileges,
    ) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_endpoint: HashMap::new(),
            overlaps: OverlapIndex::default(),
            counts: BTreeMap::new(),
            last: 0,
            capacity: capacity.min(revocation.capacity()),
            revocation,
            is_used_by_descendants: false,
            draining: Vec::new(),
            stopped: StoppedSockets::default(),
            emptied: Rc::default(),
            last_probed: ListenerId(0),
            rejected: Vec::new(),
            not_revoked: RefCell::default(),
            unopened: Vec::new(),
            without_interface: BTreeMap::new(),
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

    pub(super) fn record_end(&self, id: ListenerId) {
        self.changes.iter().for_each(|changes| changes.push_end(id));
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

    /// Continues with the allowlist of another broker. No listener is open yet.
    ///
    /// # Errors
    /// The descriptor is no allowlist, or its filters cannot be loaded.
    pub fn adopt_allowlist(&mut self, map: OwnedFd) -> nix::Result<()> {
        self.revocation.adopt(map)?;
        self.capacity = self.capacity.min(self.revocation.capacity());
        Ok(())
    }

    /// The map of the allowlist, for a broker that continues with it.
    pub fn allowlist(&self) -> Option<BorrowedFd<'_>> {
        self.revocation.map()
    }

    /// Revokes every socket in the allowlist that is not a listener of this registry.
    pub fn revoke_others(&self) {
        let draining: Vec<_> = self.draining.iter().filter_map(Weak::upgrade).collect();
        let draining = draining.iter().map(|one| one.entry.bound.revocability);
        self.revocation
            .revoke_others(self.entries.values().map(|entry| entry.bound.revocability).chain(draining));
    }

    /// Adjusts the registry to the confined broker, which has these capabilities: finds out how far it can still revoke
    /// listeners.
    ///
    /// # Errors
    /// The scratch sockets for that cannot be opened, or the filter does not do what it is for.
    pub fn set_confined(&mut self, capabilities: CapabilitySet) -> nix::Result<Enforcement> {
        self.privileges = BindPrivileges { capabilities, confined: true, ..self.privileges };
        self.revocation.verify()
    }

    /// Records a listener that stopped and was not revoked, for `status`.
    pub(super) fn note_not_revoked(&self, fault: &Fault) {
        let mut not_revoked = self.not_revoked.borrow_mut();
        if not_revoked.len() >= MAX_NOT_REVOKED {
            not_revoked.pop_front();
        }
        not_revoked.push_back(fault.message.to_string());
    }

    /// Records that an optional listener of the configuration could not be opened, and why.
    pub fn go_on_without(&mut self, endpoint: &Endpoint, cause: &str) {
        tracing::warn!(%endpoint, reason = cause, "going on without an optional listener");
        self.unopened.push((endpoint.clone(), cause.to_owned()));
    }

    /// Forgets what [`Registry::go_on_without`] recorded, for another configuration.
    pub fn forget_unopened(&mut self) {
        self.unopened.clear();
    }

    /// Why optional listeners are not open.
    fn unopened(&self) -> impl Iterator<Item = &str> {
        let unopened = self.unopened.iter().filter(|(endpoint, _)| !self.contains(endpoint));
        unopened.map(|(_, cause)| cause.as_str())
    }

    /// How many listeners of the configuration are not open, or have no interface.
    pub fn missing(&self) -> usize {
        self.unopened().count() + self.without_interface().count()
    }

    /// Warnings about stopped listeners whose sockets other processes still use, and about listeners that are not open or have
    /// no interface.
    pub fn warnings(&self) -> Vec<String> {
        let misused = self.stopped.misused().map(|stopped| {
            format!(
                "{} uses a copy of the socket of a stopped listener on {}: it receives nothing; end that process",
                stopped.holder, stopped.endpoint
            )
        });
        let unopened = self
            .unopened()
            .map(|cause| format!("an optional listener is not open: {cause}; a reload tries again"));
        misused
            .chain(self.not_revoked.borrow().iter().cloned())
            .chain(unopened)
            .chain(self.interface_warnings())
            .collect()
    }

    /// The sockets of listeners that were stopped a moment ago.
    pub fn stopped_sockets(&mut self) -> &mut StoppedSockets {
        &mut self.stopped
    }

    /// Refuses if there is no room for another listener.
    ///
    /// # Errors
    /// The registry is full.
    pub fn check_capacity(&self) -> Result<(), Fault> {
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
    pub(super) fn bind_fault(
        &self,
        error: BindError,
        endpoint: &Endpoint,
        options: &ListenOptions,
        by: RequestedBy,
    ) -> Fault {
        let other = match error.errno {
            Errno::EADDRINUSE => self.overlapping(endpoint, options).next(),
            _ => None,
        };
        let is_in_use = error.errno == Errno::EADDRINUSE;
        let stopped = || self.stopped.holder_at(endpoint).filter(|_| endpoint.inet().is_some());
        match other {
            Some((id, _)) => self.in_use_by(endpoint, id),
            None => match stopped().filter(|_| is_in_use) {
                Some(holder) => in_use_by_stopped(endpoint, holder),
                None => error.fault(endpoint, by, &self.privileges),
            },
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
        let default = ListenOptions::default();
        let options = new.options.as_deref().unwrap_or(&default);
        let socket = new.bound.socket.as_ref();
        if let Some(reach) = socket.and_then(|socket| Reach::bound(&endpoint, options, socket)) {
            self.overlaps.insert(id, reach, Holder::of_user(new.user));
        }
        *self.counts.entry(new.owner).or_default() += 1;
        let entry = Entry {
            endpoint,
            owner: new.owner,
            user: new.user,
            name: new.name,
            floating: new.floating,
            retained_until: None,
            options: new.options,
            unkept: new.unkept,
            bound: new.bound,
        };
        self.entries.insert(id, Box::new(entry));
        self.record_change(id);
    }

    /// A listener.
    pub fn entry(&self, id: ListenerId) -> Option<&Entry> {
        self.entries.get(&id).map(|entry| &**entry)
    }

    /// The socket of a listener, if the broker has it.
    pub fn socket(&self, id: ListenerId) -> Option<BorrowedFd<'_>> {
        self.entries.get(&id)?.bound.socket.as_ref().map(OwnedFd::as_fd)
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
