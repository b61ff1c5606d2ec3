//! Confinement: one restriction per file. Each is applied exactly, and a failure is fatal.

pub mod broker;
pub mod descriptors;
pub mod identity;
pub mod keyring;
pub mod landlock;
pub mod limits;
pub mod locks;
pub mod reader;
mod reader_syscalls;
pub mod root;
pub mod seccomp;
mod syscalls;
pub mod user_namespace;
pub mod verify;
pub mod worker;
