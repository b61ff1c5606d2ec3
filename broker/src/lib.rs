//! The broker.
pub mod capability;
pub mod config;
pub mod policy;
