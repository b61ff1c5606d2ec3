//! Test support: a host made of namespaces, the broker started in it, peers that behave and peers that do not.
//!
//! Nothing here touches the machine it runs on: every test enters namespaces of its own first (see [`host`])
//! and all that it started ends with them. What is missing for that is a failure that names it, never a skip.

pub mod binaries;
pub mod broker;
pub mod census;
pub mod chroot;
pub mod crowd;
pub mod exhaustion;
pub mod explained;
pub mod figures;
pub mod flood;
pub mod host;
pub mod kernel;
pub mod lan;
pub mod manager;
pub mod namespaces;
pub mod neighbour;
pub mod peer;
pub mod process;
pub mod puppet;
pub mod random;
pub mod refusal;
pub mod reloaded;
pub mod sample;
pub mod soak;
pub mod steps;
pub mod wait;
pub mod wire;

pub use broker::Broker;
pub use host::{Host, alone, isolated};
pub use kernel::Kernel;
pub use peer::Peer;
pub use refusal::Refusal;
pub use wait::eventually;

/// The examples of the page for users of the client library compile.
#[cfg(doctest)]
#[doc = include_str!("../../deploy/docs/clients.md")]
struct Clients;

/// The example of README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
