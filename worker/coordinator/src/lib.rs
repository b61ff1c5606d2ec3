//! The coordinator of Portreeve: decides which node of a cluster holds which address.
//!
//! Every node runs the same pure functions of [`core`] on what it knows of the keys in an [`engine`], and acts for itself only.
//! [`simulate`] runs a whole cluster of them in one process, with faults.

#![forbid(unsafe_code)]

pub mod control;
pub mod core;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod engine;
pub mod simulate;
