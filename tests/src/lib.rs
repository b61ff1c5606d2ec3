//! Test support: a host made of namespaces, the broker started in it, and well-behaved and hostile peers.
//!
//! Tests do not change the machine that they run on: each enters namespaces of its own first (see [`host`]), and all
//! processes that it starts end with them. If the machine lacks a prerequisite, the test fails and names it; no test is
//! skipped.

pub mod adversary;
pub mod benchmark;
pub mod binaries;
pub mod broker;
pub mod certificates;
pub mod chroot;
pub mod cluster;
pub mod debian;
pub mod etcd;
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
pub use host::{Host, exclusive, isolated, isolated_cluster};
pub use kernel::Kernel;
pub use peer::Peer;
pub use startup_failure::StartupFailure;
pub use wait::eventually;

/// Compiles the examples of the client library's page.
#[cfg(doctest)]
#[doc = include_str!("../../deploy/docs/clients.md")]
struct Clients;

/// The example of README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
