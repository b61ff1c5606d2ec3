//! The parts of the sample worker that need no socket and no broker, with their unit tests.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../examples/smtp_worker/address.rs"]
mod address;
#[path = "../examples/smtp_worker/control.rs"]
mod control;
#[path = "../examples/smtp_worker/data.rs"]
mod data;
#[path = "../examples/smtp_worker/dialogue.rs"]
mod dialogue;
#[path = "../examples/smtp_worker/maildir.rs"]
mod maildir;
