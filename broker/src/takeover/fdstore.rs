//! The service manager's descriptor store: it keeps copies of listeners, and passes them to the next broker when this one
//! is restarted or dies. See sd_pid_notify_with_fds(3).
//!
//! Promises: a listener is stored soon after the reply to the peer that requested it, and never before; a stopped one is
//! removed. What is stored when the broker stops stays open. A service manager that does not read delays nothing else. No
//! peer uses up the store: see [`Shares`]. A listener that does not fit is stored as soon as there is room.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use nix::errno::Errno;
use portreeve_protocol::message::ListenerId;

use super::fdstore_name::ALLOWLIST_NAME;
use super::fdstore_shares::{Party, Shares, StoredListener};
use crate::in_flight_limit::InFlightLimit;
use crate::listener::ChangeQueue;
use crate::sd_notify::{Notifier, RETRY_PAUSE, is_full};

/// The most parties of which a line in the log says that not all of their listeners fit.
const MAX_TOLD: usize = 1024;
/// The largest number of descriptors that the service manager may have left unread: a peer that opens listeners decides how
/// many are sent.
const MAX_UNREAD: usize = 64;

/// The source of the listeners to store.
pub trait FdstoreSource {
    /// How a listener is stored; `None` for one that has stopped, is floating, or cannot be stored.
    fn to_store(&self, id: ListenerId) -> Option<StoredListener>;

    /// Passes a listener's socket to `send`; `None` if the listener has stopped.
    fn with_socket(
        &self,
        id: ListenerId,
        send: &mut dyn FnMut(BorrowedFd<'_>) -> nix::Result<()>,
    ) -> Option<nix::Result<()>>;

    /// Passes the map of the allowlist to `send`; `None` if there is none.
    fn with_allowlist(
        &self,
        send: &mut dyn FnMut(BorrowedFd<'_>) -> nix::Result<()>,
    ) -> Option<nix::Result<()>>;

    /// Whether a successor has committed: then the store belongs to the successor.
    fn is_taken_over(&self) -> bool;
}

/// The names in the store when the broker started.
#[derive(Debug, Default)]
pub struct NamesAtStart {
    /// Those of listeners that were imported.
    pub imported: BTreeSet<String>,
    /// The others.
    pub stale: Vec<String>,
}

/// The store.
pub struct Fdstore {
    notifier: Rc<Notifier>,
    changes: Rc<ChangeQueue>,
    shares: RefCell<Shares>,
    /// Those of whom a line in the log says that not all of their listeners fit.
    told: RefCell<BTreeSet<Party>>,
    /// A line in the log says that a message could not be sent.
    warned: Cell<bool>,
    in_flight_limit: Rc<InFlightLimit>,
    /// How many descriptors were sent since the service manager was last known to have received all.
    unread: Cell<usize>,
}

impl Fdstore {
    /// An empty store with room for `capacity` descriptors.
    pub fn new(
        notifier: Rc<Notifier>,
        changes: Rc<ChangeQueue>,
        capacity: usize,
        in_flight_limit: Rc<InFlightLimit>,
    ) -> Self {
        let (told, warned, unread) = Default::default();
        let shares = RefCell::new(Shares::new(capacity));
        Self { notifier, changes, shares, told, warned, in_flight_limit, unread }
    }

    /// The maximum number of descriptors.
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.shares.borrow().capacity()).unwrap_or(u32::MAX)
    }

    /// Whether a listener is stored.
    pub fn contains(&self, id: ListenerId) -> bool {
        self.shares.borrow().get(id).is_some()
    }

    /// A sentence for the operator about listeners that do not fit, if there are any.
    pub fn warning(&self) -> Option<String> {
        self.shares.borrow().warning()
    }

    /// Removes the names that no listener has any more and stores the allowlist, then updates the store with every change of
    /// the registry until a successor commits.
    pub async fn run(self: Rc<Self>, source: Rc<dyn FdstoreSource>, names: NamesAtStart) {
        for name in names.stale {
            self.remove(&name).await;
        }
        // Without it, the next broker cannot revoke the listeners that it imports.
        let stored = loop {
            match self.send_copy(ALLOWLIST_NAME, |send| source.with_allowlist(send)).await {
                Err(Errno::ETOOMANYREFS) => {}
                stored => break stored,
            }
        };
        if let Err(errno) = stored {
            self.warn(errno, "store the allowlist of listeners");
        }
        // The first changes are the listeners of the start. A predecessor may have stored more than fit.
        let mut at_start = Some(names.imported);
        loop {
            let mut changed: Vec<_> = self.changes.take().await.into_iter().collect();
            // Those that stopped make room; static ones come first.
            changed.sort_by_key(|id| {
                let party = source.to_store(*id).map(|listener| listener.party);
                (party.is_some(), party != Some(Party::Static), *id)
            });
            for id in changed {
                if source.is_taken_over() {
                    return;
                }
                self.update(&*source, id, at_start.as_ref()).await;
            }
            at_start = None;
            while let Some(id) = self.next_waiting() {
                if source.is_taken_over() {
                    return;
                }
                self.update(&*source, id, None).await;
            }
        }
    }

    fn next_waiting(&self) -> Option<ListenerId> {
        self.shares.borrow().next_waiting()
    }

    /// `at_start`: the names of the listeners that the store passed to this broker, until all of them are handled.
    async fn update(&self, source: &dyn FdstoreSource, id: ListenerId, at_start: Option<&BTreeSet<String>>) {
        let wanted = source.to_store(id);
        let stored = self.shares.borrow().get(id).cloned();
        match (&stored, &wanted) {
            (Some(stored), Some(wanted)) if stored.name == wanted.name => {
                self.shares.borrow_mut().insert(id, wanted.clone());
                return;
            }
            (Some(stored), _) => self.remove(&stored.name).await,
            (None, _) => {}
        }
        self.shares.borrow_mut().remove(id);
        self.changes.forget(id);
        let Some(listener) = wanted else { return };
        let was_passed = at_start.is_some_and(|names| names.contains(&listener.name));
        if !self.make_room(source, listener.party, was_passed).await {
            if at_start.is_some() {
                self.remove(&listener.name).await;
            }
            self.wait(source, id);
            return;
        }
        match self.send_copy(&listener.name, |send| source.with_socket(id, send)).await {
            Ok(true) => {}
            Ok(false) => return,
            // Before Linux 6.10 the cause can be this one socket, so others take their turn first.
            Err(Errno::ETOOMANYREFS) => return self.changes.push(id),
            Err(errno) => return self.warn(errno, "store a listener"),
        }
        self.warned.set(false);
        self.changes.remember(id);
        self.shares.borrow_mut().insert(id, listener);
    }

    /// Whether there is room for a listener; a static one displaces another.
    async fn make_room(&self, source: &dyn FdstoreSource, party: Party, was_passed: bool) -> bool {
        let admits = |shares: &Shares| shares.admits(party) || (was_passed && shares.has_free_entry());
        while !admits(&self.shares.borrow()) {
            let displaced = self.shares.borrow().to_displace().filter(|_| party == Party::Static);
            let Some(displaced) = displaced else { return false };
            let name = self.shares.borrow().get(displaced).map(|listener| listener.name.clone());
            if let Some(name) = name {
                self.remove(&name).await;
            }
            self.wait(source, displaced);
        }
        true
    }

    /// Makes a listener wait for room, unless it has stopped, and says so once for each party.
    fn wait(&self, source: &dyn FdstoreSource, id: ListenerId) {
        let mut shares = self.shares.borrow_mut();
        let Some(StoredListener { party, .. }) = source.to_store(id) else {
            shares.remove(id);
            self.changes.forget(id);
            return;
        };
        shares.wait(id, party);
        self.changes.remember(id);
        let mut told = self.told.borrow_mut();
        if told.len() < MAX_TOLD && told.insert(party) {
            tracing::warn!(
                capacity = shares.capacity(),
                owner = %party,
                "the service manager's descriptor store is full: listeners of this owner that do not fit close when the \
                 broker is restarted; raise FileDescriptorStoreMax="
            );
        }
    }

    /// Sends a descriptor to be stored under this name. False if there is none any more.
    ///
    /// # Errors
    /// ETOOMANYREFS, after a pause; other errors of sendmsg(2) that do not pass.
    async fn send_copy(
        &self,
        name: &str,
        with_descriptor: impl Fn(&mut dyn FnMut(BorrowedFd<'_>) -> nix::Result<()>) -> Option<nix::Result<()>>,
    ) -> nix::Result<bool> {
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        loop {
            self.await_room().await;
            match with_descriptor(&mut |descriptor| self.notifier.send(&message, &[descriptor])) {
                None => return Ok(false),
                Some(Ok(())) => {
                    self.unread.update(|count| count + 1);
                    self.in_flight_limit.sent();
                    return Ok(true);
                }
                Some(Err(errno @ Errno::ETOOMANYREFS)) => {
                    self.in_flight_limit.refused();
                    tokio::time::sleep(RETRY_PAUSE).await;
                    return Err(errno);
                }
                Some(Err(errno)) if is_full(errno) => tokio::time::sleep(RETRY_PAUSE).await,
                Some(Err(errno)) => return Err(errno),
            }
        }
    }

    /// Waits while the service manager has left [`MAX_UNREAD`] descriptors unread.
    async fn await_room(&self) {
        while self.unread.get() >= MAX_UNREAD {
            match self.notifier.has_unread_messages() {
                true => tokio::time::sleep(RETRY_PAUSE).await,
                false => self.unread.set(0),
            }
        }
    }

    async fn remove(&self, name: &str) {
        let message = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        loop {
            match self.notifier.send(&message, &[]) {
                Ok(()) => return self.warned.set(false),
                Err(errno) if is_full(errno) => tokio::time::sleep(RETRY_PAUSE).await,
                Err(errno) => return self.warn(errno, "remove a listener"),
            }
        }
    }

    /// Logs the first of several failures in a row: peers cause the messages.
    fn warn(&self, errno: Errno, what: &str) {
        if !self.warned.replace(true) {
            tracing::warn!(error = %errno, "cannot {what} in the service manager's descriptor store");
        }
    }
}
