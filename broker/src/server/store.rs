//! The service manager's descriptor store: it keeps copies of listeners, and gives them to the next broker when this
//! one is restarted or dies. See sd_pid_notify_with_fds(3).
//!
//! Promises: a listener is stored soon after whoever asked for it was answered, and never before; one that is stopped is
//! taken out. What is stored when the broker is told to end is left open. A service manager that does not read is waited
//! for by nobody else.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::message::ListenerId;

use super::notify::Notifier;
use super::state::Broker;
use crate::listener::Changes;
use crate::listener::stored::Stored;

/// The pause before the service manager is told again that did not read.
const AGAIN: Duration = Duration::from_millis(20);

/// What is stored.
pub struct Store {
    notifier: Rc<Notifier>,
    changes: Rc<Changes>,
    /// How many descriptors fit.
    most: usize,
    /// Under which name each is.
    names: RefCell<BTreeMap<ListenerId, String>>,
    full: Cell<bool>,
}

impl Store {
    /// An empty one, with room for so many.
    pub fn new(notifier: Rc<Notifier>, changes: Rc<Changes>, most: usize) -> Self {
        Self { notifier, changes, most, names: RefCell::default(), full: Cell::new(false) }
    }

    /// How many descriptors fit.
    pub fn most(&self) -> u32 {
        u32::try_from(self.most).unwrap_or(u32::MAX)
    }

    /// Whether a listener is stored.
    pub fn holds(&self, id: ListenerId) -> bool {
        self.names.borrow().contains_key(&id)
    }

    /// Keeps the store as the registry is, for as long as the broker serves. `stale` are names that nobody has any more.
    pub async fn keep(self: Rc<Self>, broker: Rc<Broker>, stale: Vec<String>) {
        for name in stale {
            self.take_out(&name).await;
        }
        loop {
            for id in self.changes.take().await {
                if broker.handover.is_over() {
                    return;
                }
                self.follow(&broker, id).await;
            }
        }
    }

    async fn follow(&self, broker: &Broker, id: ListenerId) {
        let wanted = name(broker, id);
        let stored = self.names.borrow().get(&id).cloned();
        if stored == wanted {
            return;
        }
        if let Some(name) = stored {
            self.take_out(&name).await;
            self.names.borrow_mut().remove(&id);
        }
        let Some(name) = wanted else { return };
        if self.names.borrow().len() >= self.most {
            if !self.full.replace(true) {
                tracing::warn!(
                    most = self.most,
                    "the service manager's descriptor store is full: what listens beyond it closes when the broker \
                     is restarted; raise FileDescriptorStoreMax="
                );
            }
            return;
        }
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        loop {
            let sent = match broker.registry.borrow().socket(id) {
                Some(socket) => self.notifier.send(&message, &[socket]),
                None => return,
            };
            match sent {
                Ok(()) => break,
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ETOOMANYREFS) => tokio::time::sleep(AGAIN).await,
                Err(errno) => {
                    tracing::warn!(%errno, "a listener could not be stored with the service manager");
                    return;
                }
            }
        }
        self.names.borrow_mut().insert(id, name);
    }

    async fn take_out(&self, name: &str) {
        let message = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        loop {
            match self.notifier.send(&message, &[]) {
                Ok(()) => return,
                Err(Errno::EAGAIN | Errno::ENOBUFS) => tokio::time::sleep(AGAIN).await,
                Err(errno) => {
                    tracing::warn!(%errno, "a listener could not be taken out of the service manager's store");
                    return;
                }
            }
        }
    }
}

/// The name to store a listener under; `None` for one that is gone or is not stored. What moves with its address starts
/// with it.
fn name(broker: &Broker, id: ListenerId) -> Option<String> {
    let registry = broker.registry.borrow();
    let told = registry.told(id, |session| broker.user(session)).filter(|(_, moves)| !moves)?.0;
    Stored { endpoint: told.endpoint, options: told.options, user: told.user }.name()
}
