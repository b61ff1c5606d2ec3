//! Returns memory that the broker no longer needs to the kernel: what only its start used, and what many listeners used that
//! have stopped.

use std::rc::Rc;
use std::time::Duration;

use super::state::Broker;
use crate::sys::file_pages;

/// How long the broker waits: it may still need the memory.
const PAUSE: Duration = Duration::from_secs(1);

/// Returns the memory of the start, and then that of stopped listeners.
pub async fn release_loop(broker: Rc<Broker>) {
    tokio::time::sleep(PAUSE).await;
    file_pages::release();
    let emptied = broker.registry.borrow().emptied();
    loop {
        emptied.notified().await;
        tokio::time::sleep(PAUSE).await;
        broker.registry.borrow_mut().trim_memory();
    }
}
