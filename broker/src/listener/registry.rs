//! Every listener that the broker holds: whose it is, its socket, and what becomes of it when its owner goes.
//!
//! The broker's duplicate is the listener: asking again gives the same socket, so a descriptor that was lost on
//! the way is not lost. Nothing here asks policy.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;

use nix::errno::Errno;
use portreeve_protocol::message::{ListenOptions, ListenerId};
use portreeve_protocol::{Endpoint, Fault, FaultCode};

use super::bind::{BindError, Bound, bind};
use super::changes::Changes;
use super::entry::{Entry, Owner};
use super::out_of_service::Filter;
use crate::config::SocketOptions;
use crate::sys::directories::Directories;
use crate::sys::unix_file::UnixFile;

/// All listeners.
#[derive(Debug)]
pub struct Registry {
    /// Boxed, because a node of the tree is often half empty.
    pub(super) entries: BTreeMap<ListenerId, Box<Entry>>,
    pub(super) by_endpoint: HashMap<Rc<Endpoint>, ListenerId>,
    /// How many each owner has; none of those who have none.
    pub(super) counts: HashMap<Owner, usize>,
    pub(super) last: u64,
    capacity: usize,
    pub(super) filter: Filter,
    pub(super) directories: Directories,
    /// The file of the control socket, which goes with the others.
    pub(super) control: Option<UnixFile>,
    /// Told of what comes and goes, where somebody keeps account.
    pub(super) changes: Option<Rc<Changes>>,
}

/// No file of a socket outlives the broker, however far its start came.
impl Drop for Registry {
    fn drop(&mut self) {
        let listeners = self.entries.values().filter_map(|entry| entry.bound.file.as_deref());
        listeners.chain(&self.control).for_each(|file| file.remove(&self.directories));
    }
}

impl Registry {
    /// An empty registry that holds at most `capacity` listeners, ends them with this filter, and binds Unix
    /// sockets in these directories.
    pub fn new(capacity: usize, filter: Filter, directories: Directories) -> Self {
        Self {
            directories,
            control: None,
            entries: BTreeMap::new(),
            by_endpoint: HashMap::new(),
            counts: HashMap::new(),
            last: 0,
            capacity,
            filter,
            changes: None,
        }
    }

    /// Has account kept of what comes and goes from now on.
    pub fn tell(&mut self, changes: Rc<Changes>) {
        self.changes = Some(changes);
    }

    pub(super) fn changed(&self, id: ListenerId) {
        self.changes.iter().for_each(|changes| changes.note(id));
    }

    /// Takes the file of the control socket into care.
    pub fn keep_control(&mut self, file: UnixFile) {
        self.control = Some(file);
    }

    /// The directories of Unix sockets.
    pub fn directories(&self) -> &Directories {
        &self.directories
    }

    /// The same, to be changed for those of the empty root.
    pub fn directories_mut(&mut self) -> &mut Directories {
        &mut self.directories
    }

    /// Tries, once the broker is confined, how far stopping is enforced; false when it is not.
    pub fn confirm_filter(&mut self) -> nix::Result<bool> {
        self.filter = std::mem::replace(&mut self.filter, Filter::None).confirmed()?;
        Ok(!matches!(self.filter, Filter::None))
    }

    /// Binds a static listener: the worker's from the start, and kept however many workers come and go.
    pub fn bind_static(
        &mut self,
        endpoint: Endpoint,
        settings: &SocketOptions,
        name: &str,
    ) -> Result<(), Fault> {
        let options = ListenOptions::default();
        let bound = bind(&self.directories, &endpoint, &options, settings);
        let bound = bound.map_err(|error| self.name_owner(error, &endpoint))?;
        self.insert(endpoint, &options, bound, Owner::Worker, Some(name.into()));
        Ok(())
    }

    /// Binds a listener whose address has just come: the worker's, which asks for it when it likes. Until then clients
    /// wait in its queue. One that the worker has there already stays as it is.
    pub fn bind_moving(
        &mut self,
        endpoint: &Endpoint,
        settings: &SocketOptions,
        name: &str,
    ) -> Result<Option<ListenerId>, Fault> {
        let there = self.by_endpoint.get(endpoint).and_then(|id| self.entries.get(id));
        match there.map(|entry| entry.owner) {
            Some(Owner::Worker) => return Ok(None),
            Some(owner) => return Err(in_use(endpoint, owner)),
            None => self.room()?,
        }
        let options = ListenOptions::default();
        let bound = bind(&self.directories, endpoint, &options, settings)
            .map_err(|error| self.name_owner(error, endpoint))?;
        let id = self.insert(endpoint.clone(), &options, bound, Owner::Worker, Some(name.into()));
        self.entries.get_mut(&id).into_iter().for_each(|entry| entry.moves = true);
        Ok(Some(id))
    }

    /// Refuses where there is no room for another.
    pub(super) fn room(&self) -> Result<(), Fault> {
        if self.entries.len() < self.capacity {
            return Ok(());
        }
        let message = format!("the broker holds {} listeners and can hold no more", self.capacity);
        Err(Fault::new(FaultCode::Quota, &message)
            .remedy("stop listeners, or start portreeved with a higher limit of open files"))
    }

    /// An endpoint may be taken by a listener of ours that is not the same and overlaps: a wildcard beside a
    /// specific address.
    pub(super) fn name_owner(&self, error: BindError, endpoint: &Endpoint) -> Fault {
        let same_port = |other: &&Entry| {
            std::mem::discriminant(&*other.endpoint) == std::mem::discriminant(endpoint)
                && other.endpoint.inet().map(|inet| inet.port) == endpoint.inet().map(|inet| inet.port)
                && endpoint.inet().is_some()
        };
        match self.entries.values().map(|entry| &**entry).find(same_port) {
            Some(other) if error.errno == Errno::EADDRINUSE => in_use(&other.endpoint, other.owner),
            _ => error.fault(endpoint),
        }
    }

    pub(super) fn insert(
        &mut self,
        endpoint: Endpoint,
        options: &ListenOptions,
        bound: Bound,
        owner: Owner,
        name: Option<Box<str>>,
    ) -> ListenerId {
        let id = ListenerId(self.last + 1);
        self.enter(id, endpoint, options, bound, owner);
        self.entries.get_mut(&id).into_iter().for_each(|entry| entry.name.clone_from(&name));
        id
    }

    /// Enters a listener under a number that none has.
    pub(super) fn enter(
        &mut self,
        id: ListenerId,
        endpoint: Endpoint,
        options: &ListenOptions,
        bound: Bound,
        owner: Owner,
    ) {
        self.last = self.last.max(id.0);
        let endpoint = Rc::new(endpoint);
        self.by_endpoint.insert(endpoint.clone(), id);
        *self.counts.entry(owner).or_default() += 1;
        let options = (*options != ListenOptions::default()).then(|| Box::new(options.clone()));
        let entry = Entry { endpoint, owner, name: None, moves: false, retained_until: None, options, bound };
        self.entries.insert(id, Box::new(entry));
        self.changed(id);
    }

    /// Where a listener listens.
    pub fn endpoint(&self, id: ListenerId) -> Option<&Endpoint> {
        Some(&self.entries.get(&id)?.endpoint)
    }

    /// The listener's socket.
    pub fn socket(&self, id: ListenerId) -> Option<BorrowedFd<'_>> {
        Some(self.entries.get(&id)?.bound.socket.as_fd())
    }

    /// The static listeners with their names, in the order of the configuration.
    pub fn statics(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        let fixed = self.entries.values().filter(|entry| !entry.moves);
        fixed.filter_map(|entry| Some((entry.name.as_deref()?, entry.bound.socket.as_fd())))
    }

    /// Whether there is one at this endpoint, whosever it is.
    pub fn holds(&self, endpoint: &Endpoint) -> bool {
        self.by_endpoint.contains_key(endpoint)
    }

    /// How many there can be.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// How many the owner has.
    pub fn count_of(&self, owner: Owner) -> usize {
        self.counts.get(&owner).copied().unwrap_or_default()
    }

    /// The listeners after a number, in their order.
    pub fn after(&self, id: ListenerId) -> impl Iterator<Item = (ListenerId, &Entry)> {
        self.entries.range((Excluded(id), Unbounded)).map(|(id, entry)| (*id, &**entry))
    }
}

/// The fault of who asks for what another peer has.
pub fn in_use(endpoint: &Endpoint, owner: Owner) -> Fault {
    let owner = match owner {
        Owner::Worker => "the worker".to_owned(),
        Owner::Session(number) => format!("session {number}"),
        Owner::Former(user) => format!("user {user}, for whom it is kept for a while,"),
    };
    let message = format!("{endpoint} is in use by {owner} of this broker");
    Fault::new(FaultCode::InUse, &message)
        .subject(&owner)
        .remedy("have its owner stop it, or ask for another endpoint")
}
