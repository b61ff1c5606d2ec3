//! Test support: a host made of namespaces, the broker started in it, peers that behave and peers that do not.
//!
//! Nothing here touches the machine it runs on: every test enters namespaces of its own first (see [`host`])
//! and all that it started ends with them. What is missing for that is a failure that names it, never a skip.

pub mod benchmark;
pub mod binaries;
pub mod broker;
pub mod chroot;
pub mod explain;
pub mod flood;
pub mod host;
pub mod in_flight_limit;
pub mod kernel;
pub mod lan;
pub mod namespaces;
pub mod neighbour;
pub mod packet_capture;
pub mod peer;
pub mod process;
pub mod random;
pub mod reload;
pub mod resources;
pub mod sample;
pub mod scripted_worker;
pub mod service_manager;
pub mod smtp_load;
pub mod soak;
pub mod startup_failure;
pub mod startup_steps;
pub mod wait;

pub use broker::Broker;
pub use host::{Host, exclusive, isolated};
pub use kernel::Kernel;
pub use peer::Peer;
pub use startup_failure::StartupFailure;
pub use wait::eventually;

/// The examples of the page for users of the client library compile.
#[cfg(doctest)]
#[doc = include_str!("../../deploy/docs/clients.md")]
struct Clients;
