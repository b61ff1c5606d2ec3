//! The numbers of listeners that appeared, disappeared or changed, queued for the descriptor store.
//!
//! Promises: the queue is bounded by the number of listeners, however many appear and disappear while nobody reads it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use portreeve_protocol::message::ListenerId;
use tokio::sync::Notify;

/// Changed listeners that were not read yet.
#[derive(Debug, Default)]
pub struct ChangeQueue {
    ids: RefCell<BTreeSet<ListenerId>>,
    /// The listeners that the reader has to know the end of.
    remembered: RefCell<BTreeSet<ListenerId>>,
    added: Notify,
}

impl ChangeQueue {
    /// Records a change.
    pub fn push(&self, id: ListenerId) {
        self.ids.borrow_mut().insert(id);
        self.added.notify_one();
    }

    /// Records the end of a listener. It concerns the reader only if the reader has stored it.
    pub fn push_end(&self, id: ListenerId) {
        match self.remembered.borrow().contains(&id) {
            true => self.push(id),
            false => {
                self.ids.borrow_mut().remove(&id);
            }
        }
    }

    /// The reader has to know the end of this listener.
    pub fn remember(&self, id: ListenerId) {
        self.remembered.borrow_mut().insert(id);
    }

    /// The reader need not know the end of this listener any more.
    pub fn forget(&self, id: ListenerId) {
        self.remembered.borrow_mut().remove(&id);
    }

    /// Waits for changes and removes them all from the queue.
    pub async fn take(&self) -> BTreeSet<ListenerId> {
        loop {
            let ids = self.ids.take();
            if !ids.is_empty() {
                return ids;
            }
            self.added.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_that_came_and_went_leave_nothing_in_the_queue() {
        let queue = ChangeQueue::default();
        queue.remember(ListenerId(1));
        for id in 1..1000 {
            queue.push(ListenerId(id));
            queue.push_end(ListenerId(id));
        }
        assert_eq!(*queue.ids.borrow(), [ListenerId(1)].into());
    }
}
