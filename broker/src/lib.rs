//! The broker: a privileged helper that opens sockets and manages addresses for unprivileged daemons.
//!
//! Modules that decide (`config`, `policy`, `capability`) have no unsafe code and make no system calls. Modules that act
//! have one mechanism per file: `sys` wraps system calls, `confine` applies restrictions, `launcher` starts the worker,
//! `reader` reads files for a reload, `listener` holds sockets, `address` manages addresses, `server` serves sessions and
//! `events` records what happens. `plan` applies a configuration to this host: `startup` acts on it, `command` displays
//! it.

pub mod address;
pub mod capability;
mod child_process;
pub mod cli;
mod command;
pub mod config;
pub mod confine;
pub mod counter;
pub mod events;
pub mod failure;
pub mod holder;
#[cfg(feature = "hostile")]
pub mod hostile;
mod inject;
pub mod launcher;
pub mod listener;
mod log;
#[cfg(test)]
mod manual_pages;
mod plan;
pub mod policy;
pub mod reader;
pub mod server;
mod startup;
pub mod sys;
mod takeover;
