//! The broker `portreeved`: a privileged helper that opens sockets and manages addresses for unprivileged daemons.
//!
//! ARCHITECTURE.md beside this folder describes the processes, the modules and their layers, the life of a request, and
//! how to add an operation. Modules that decide (`config`, `policy`, `capability`) have no unsafe code and make no system
//! call.

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
mod in_flight_limit;
mod inject;
pub mod launcher;
pub mod listener;
mod log;
#[cfg(test)]
mod manual_pages;
mod plan;
pub mod policy;
pub mod reader;
mod sd_notify;
pub mod server;
mod share;
mod startup;
pub mod sys;
mod takeover;
