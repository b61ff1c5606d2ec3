//! The broker.
pub mod capability;
