//! The broker: keeps a few of root's powers and lends, by policy, what they make.
//!
//! What decides (`config`, `policy`, `capability`) has no unsafe code and touches nothing; what acts is one
//! mechanism a file: `confine` holds the locks, `launcher` the worker's process, `reader` the one that reads files,
//! `listener` the sockets, `address` and `link` what is on an interface, `service` the sessions in which peers ask for
//! them, and `events` tells them what happens. Between the two, `plan`
//! finds what a configuration means on this host: `startup` acts on it, `command` only tells it.

pub mod address;
pub mod capability;
pub mod cli;
mod command;
pub mod config;
pub mod confine;
pub mod events;
pub mod failure;
mod forked;
#[cfg(feature = "hostile")]
pub mod hostile;
mod inject;
pub mod launcher;
pub mod listener;
mod log;
#[cfg(test)]
mod manual;
mod plan;
pub mod policy;
pub mod reader;
pub mod server;
mod startup;
pub mod sys;
mod takeover;
