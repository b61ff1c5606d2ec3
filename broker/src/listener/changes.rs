//! Which listeners came, went, or became somebody else's, for who keeps account of them.

use std::cell::RefCell;

use portreeve_protocol::message::ListenerId;
use tokio::sync::Notify;

/// The numbers that something happened to, until somebody takes them.
#[derive(Debug, Default)]
pub struct Changes {
    ids: RefCell<Vec<ListenerId>>,
    some: Notify,
}

impl Changes {
    /// Notes one.
    pub fn note(&self, id: ListenerId) {
        self.ids.borrow_mut().push(id);
        self.some.notify_one();
    }

    /// Waits for some, and takes them.
    pub async fn take(&self) -> Vec<ListenerId> {
        loop {
            let ids = self.ids.take();
            if !ids.is_empty() {
                return ids;
            }
            self.some.notified().await;
        }
    }
}
