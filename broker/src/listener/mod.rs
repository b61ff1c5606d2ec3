//! Listeners: sockets that the broker binds for a peer. The peer gets a copy of each; the broker keeps one, unless the
//! peer has requested that it does not.
//!
//! Promises: nothing here consults policy, and nothing here calls the kernel except through `sys`.

#![deny(unsafe_code)]

mod acquire;
mod bind;
mod bound_socket;
mod change_queue;
mod configured;
mod drain;
mod entry;
mod export;
mod fault;
mod import;
mod interface;
mod open;
mod overlap;
mod registry;
mod reset;
mod revocation;
mod stop;
mod stopped_sockets;
mod unkept;
mod vrf;

pub use acquire::Acquired;
pub use bound_socket::BoundSocket;
pub use change_queue::ChangeQueue;
pub use drain::Draining;
pub use entry::{Entry, Owner};
pub use fault::{BindError, BindPrivileges, RequestedBy, in_use};
pub use import::{Configured, ImportError};
pub use interface::InterfaceChange;
pub use registry::Registry;
pub use revocation::{Enforcement, Revocability, Revocation};
