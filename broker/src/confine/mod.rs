//! Confinement: each lock in a file of its own, each applied exactly and fatal when it fails.

pub mod broker;
pub mod descriptors;
pub mod identity;
pub mod keyring;
pub mod landlock;
pub mod limits;
pub mod locks;
pub mod reader;
pub mod root;
pub mod seccomp;
mod syscalls;
mod syscalls_of_reader;
pub mod verify;
pub mod worker;
