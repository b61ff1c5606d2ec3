//! Answers bind(2) of an unmodified program with a socket of Portreeve's broker.
//!
//! The program runs under a system call filter that suspends each bind(2) and notifies its supervisor; see
//! seccomp_unotify(2). The supervisor runs as the same user. It reads the address, requests a listener for it from the broker,
//! puts that socket in the place of the program's own, and lets bind(2) return 0. Every other bind(2) continues in the kernel.
//! [`Supervisor`] does all of that for a caller that polls descriptors.
//!
//! ```text
//! start:  filter::intercept, spawn, filter::receive -> Notifications
//! loop:   next -> Call -> examine -> Verdict::Pass            -> pass
//!                                       -> Verdict::Listen(request) -> ask the broker -> answer or refuse
//! ```
//!
//! Promises:
//!
//! - The filter and the supervisor give the program nothing that its user could not request from the broker itself. The filter
//!   denies nothing, so a call that continues with an address that was changed meanwhile is judged by the kernel, like any
//!   bind(2) of a program without privileges.
//! - The address is read once. The broker judges and binds that copy.
//! - [`decision`], [`rules`] and [`socket_address`] decide, and contain no system call; `sys` contains all unsafe code.
#![deny(unsafe_code)]

pub mod decision;
pub mod errno;
pub mod filter;
pub mod notifications;
mod options;
pub mod rules;
pub mod socket_address;
pub mod supervisor;
#[allow(unsafe_code)]
mod sys;

pub use decision::Request;
pub use filter::InstallError;
pub use notifications::{Bind, Call, Next, Notifications, Verdict};
pub use rules::Rules;
pub use supervisor::{Progress, Supervisor};
