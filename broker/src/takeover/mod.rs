//! Replacing one broker by the next without closing a listener or losing an address.
//!
//! There are two mechanisms. In a takeover the *successor* imports everything from the running broker, its
//! *predecessor*, over a control-socket session; the predecessor serves until the successor *commits*. With the service
//! manager's descriptor store (*fdstore*) the broker exports copies of its TCP and UDP listeners as they change, and the
//! next broker imports them at start.
//!
//! The code that needs the whole broker is in `server::takeover`; the messages are in `portreeve_protocol::takeover`.

#![deny(unsafe_code)]

mod export;
mod fdstore;
mod fdstore_import;
mod fdstore_name;
mod fdstore_shares;
mod import;
mod predecessor;
mod replacement;
mod request;
mod supervisor;

pub use export::{Batch, Export, taken_over};
pub use fdstore::{Fdstore, FdstoreSource, NamesAtStart};
pub use fdstore_import::import_from_fdstore;
pub use fdstore_name::{FdstoreName, is_fdstore_name};
pub use fdstore_shares::{Party, StoredListener};
pub use import::{AwaitedListener, Import, Target};
pub use predecessor::{OfferedSockets, Predecessor};
pub use replacement::{Reason, Stopping};
