//! Listeners: sockets that the broker binds for a peer, hands over and keeps a duplicate of.

pub mod asked;
pub mod bind;
mod changes;
mod entry;
pub mod handed;
mod leaving;
pub mod out_of_service;
pub mod registry;
mod stopping;
pub mod stored;
mod told;

pub use crate::sys::Directories;
pub use bind::BindError;
pub use changes::Changes;
pub use entry::{Entry, Owner};
pub use leaving::Leaving;
pub use out_of_service::Filter;
pub use registry::{Registry, in_use};
pub use told::Told;
