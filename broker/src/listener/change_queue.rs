//! The numbers of listeners that appeared, disappeared or changed, queued for the descriptor store.

use std::cell::RefCell;

use portreeve_protocol::message::ListenerId;
use tokio::sync::Notify;

/// Changed listeners that were not read yet.
#[derive(Debug, Default)]
pub struct ChangeQueue {
    ids: RefCell<Vec<ListenerId>>,
    added: Notify,
}

impl ChangeQueue {
    /// Records a change.
    pub fn push(&self, id: ListenerId) {
        self.ids.borrow_mut().push(id);
        self.added.notify_one();
    }

    /// Waits for changes and removes them all from the queue.
    pub async fn take(&self) -> Vec<ListenerId> {
        loop {
            let ids = self.ids.take();
            if !ids.is_empty() {
                return ids;
            }
            self.added.notified().await;
        }
    }
}
