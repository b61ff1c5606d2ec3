//! Listeners: sockets that the broker binds for a peer, hands over and keeps a duplicate of.

pub mod asked;
pub mod bind;
mod changes;
pub mod directories;
mod drop_program;
mod entry;
pub mod handed;
mod leaving;
pub mod memory;
mod option;
pub mod out_of_service;
pub mod registry;
mod stopping;
pub mod stored;
mod told;
pub mod unix_file;

pub use bind::BindError;
pub use changes::Changes;
pub use directories::Directories;
pub use entry::{Entry, Owner};
pub use leaving::Leaving;
pub use out_of_service::Filter;
pub use registry::{Registry, in_use};
pub use told::Told;
