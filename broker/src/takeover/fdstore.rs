//! The service manager's descriptor store: it keeps copies of listeners, and passes them to the next broker when this one
//! is restarted or dies. See sd_pid_notify_with_fds(3).
//!
//! Promises: a listener is stored soon after the reply to the peer that requested it, and never before; a stopped one is
//! removed. What is stored when the broker stops stays open. A service manager that does not read delays nothing else.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::message::ListenerId;

use super::fdstore_name::FdstoreName;
use crate::listener::ChangeQueue;
use crate::sd_notify::Notifier;

/// The pause before another attempt to send a message for which the service manager had no room.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The source of the listeners to store.
pub trait FdstoreSource {
    /// The name under which a listener is stored; `None` for one that has stopped or is floating.
    fn fdstore_name(&self, id: ListenerId) -> Option<FdstoreName>;

    /// Passes a listener's socket to `send`; `None` if the listener has stopped.
    fn with_socket(
        &self,
        id: ListenerId,
        send: &mut dyn FnMut(BorrowedFd<'_>) -> nix::Result<()>,
    ) -> Option<nix::Result<()>>;

    /// Whether a successor has committed: then the store belongs to the successor.
    fn is_taken_over(&self) -> bool;
}

/// The store.
pub struct Fdstore {
    notifier: Rc<Notifier>,
    changes: Rc<ChangeQueue>,
    /// The maximum number of descriptors.
    capacity: usize,
    /// The name of each stored listener.
    names: RefCell<BTreeMap<ListenerId, String>>,
    warned_full: Cell<bool>,
}

impl Fdstore {
    /// An empty store with room for `capacity` descriptors.
    pub fn new(notifier: Rc<Notifier>, changes: Rc<ChangeQueue>, capacity: usize) -> Self {
        Self { notifier, changes, capacity, names: RefCell::default(), warned_full: Cell::new(false) }
    }

    /// The maximum number of descriptors.
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.capacity).unwrap_or(u32::MAX)
    }

    /// Whether a listener is stored.
    pub fn contains(&self, id: ListenerId) -> bool {
        self.names.borrow().contains_key(&id)
    }

    /// Removes the names that no listener has any more, then updates the store with every change of the registry until a
    /// successor commits.
    pub async fn run(self: Rc<Self>, source: Rc<dyn FdstoreSource>, stale_names: Vec<String>) {
        for name in stale_names {
            self.remove(&name).await;
        }
        loop {
            for id in self.changes.take().await {
                if source.is_taken_over() {
                    return;
                }
                self.update(&*source, id).await;
            }
        }
    }

    async fn update(&self, source: &dyn FdstoreSource, id: ListenerId) {
        let new_name = source.fdstore_name(id).and_then(|name| name.encode());
        let stored = self.names.borrow().get(&id).cloned();
        if stored == new_name {
            return;
        }
        if let Some(name) = stored {
            self.remove(&name).await;
            self.names.borrow_mut().remove(&id);
        }
        let Some(name) = new_name else { return };
        if self.names.borrow().len() >= self.capacity {
            if !self.warned_full.replace(true) {
                tracing::warn!(
                    capacity = self.capacity,
                    "the service manager's descriptor store is full: listeners beyond its capacity close when the broker \
                     is restarted; raise FileDescriptorStoreMax="
                );
            }
            return;
        }
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        loop {
            let mut send = |socket: BorrowedFd<'_>| self.notifier.send(&message, &[socket]);
            match source.with_socket(id, &mut send) {
                None => return,
                Some(Ok(())) => break,
                Some(Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ETOOMANYREFS)) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Some(Err(errno)) => {
                    tracing::warn!(%errno, "cannot store a listener with the service manager");
                    return;
                }
            }
        }
        self.names.borrow_mut().insert(id, name);
    }

    async fn remove(&self, name: &str) {
        let message = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        loop {
            match self.notifier.send(&message, &[]) {
                Ok(()) => return,
                Err(Errno::EAGAIN | Errno::ENOBUFS) => tokio::time::sleep(RETRY_PAUSE).await,
                Err(errno) => {
                    tracing::warn!(%errno, "cannot remove a listener from the service manager's descriptor store");
                    return;
                }
            }
        }
    }
}
