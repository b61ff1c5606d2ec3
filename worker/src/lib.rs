//! Client library of Portreeve, a privileged-helper broker for Linux: a daemon without privileges requests listeners on
//! privileged ports, IP addresses with leases, and resource limits.
//!
//! ```no_run
//! use portreeve::{Channel, Client, ListenOptions};
//!
//! # #[cfg(feature = "tokio")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::open(Channel::connect(portreeve::DEFAULT_SOCKET)?, "my-server").await?;
//! let listener = client.listen(&"*:25".parse()?, &ListenOptions::new().backlog(1024)).await?.into_tcp()?;
//! let (connection, peer) = listener.accept().await?;
//! # drop((connection, peer));
//! listener.stop().await?;
//! # Ok(()) }
//! ```
//!
//! [`Client`] is for tokio; [`blocking::Client`] needs no runtime. Both are opened on a [`Channel`]: one that the broker gave
//! to its worker ([`Channel::from_environment`]), or one that is connected to the broker's control socket
//! ([`Channel::connect`]). This library itself needs no privilege, no name service and no file.
//!
//! | task | function |
//! |---|---|
//! | request a listener | [`Client::listen`]; it stops when its [`Listener`] guard is dropped |
//! | request many listeners in one round trip | [`Client::listen_many`] |
//! | adopt the listeners that were open before this process started | [`listeners_from_environment`] |
//! | hold an address and renew its lease | [`Client::hold_address`]; the address is removed when its [`Lease`] guard is dropped |
//! | receive events | [`Client::events`] |
//! | set a resource limit | [`Client::set_limit`] |
//!
//! Each error says what failed, why, and what to do:
//!
//! ```
//! use portreeve::{Channel, Error};
//!
//! let error = Channel::connect("/nonexistent/broker.sock").unwrap_err();
//! assert!(matches!(error, Error::Connect { .. }));
//! assert_eq!(
//!     error.to_string(),
//!     "cannot connect to the broker at /nonexistent/broker.sock: No such file or directory (os error 2). \
//!      Start portreeved, or name the control socket of its configuration"
//! );
//! ```
//!
//! # When the broker ends
//!
//! Sockets received from the broker remain usable, and [`Client::closed`] returns. A client on a channel with
//! [`Channel::reconnect_through`] reconnects instead: it opens the session again with the next broker, and requests what its
//! guards hold.
//!
//! - After a takeover, or if the service manager stores the descriptors, a listener keeps its socket.
//! - If a broker ended without a successor, the guard's own copy of the socket continues to accept connections, and no other
//!   program can bind its port.
//! - Leases are renewed, or their addresses added again with the same epoch, if the lease has not ended.
//! - `Listener::lost` and [`Lease::lost`] return the reason that a guard's listener or address cannot be kept. That of the
//!   blocking client does not wait; the blocking client reconnects in a thread of its own.
//!
//! # Features
//!
//! `tokio` (default): the asynchronous client. Without it there is only the [`blocking`] client.
//!
//! # Versions
//!
//! This crate follows semantic versioning. Within 0.1.x, public items keep compiling and keep their meaning, and Rust 1.88 is
//! enough; public items may change from 0.1 to 0.2. Options and errors are `#[non_exhaustive]`: new ones may be added at any
//! time. The modules that this crate re-exports from `portreeve-protocol` follow the same rule. Every 0.1.x client works with
//! every 0.1.x broker.
#![deny(unsafe_code)]
// The blocking client uses only a part of what both clients share.
#![cfg_attr(not(feature = "tokio"), allow(dead_code))]

mod address_options;
#[cfg(feature = "tokio")]
mod addresses;
pub mod blocking;
mod build;
mod channel;
#[cfg(feature = "tokio")]
mod client;
mod connection;
mod error;
#[cfg(feature = "tokio")]
mod events;
#[allow(unsafe_code)]
mod inherited;
#[cfg(feature = "tokio")]
mod lease;
mod listen_options;
mod listener;
#[cfg(feature = "tokio")]
mod reconnect;
#[cfg(feature = "tokio")]
mod removals;
mod request;
mod restore;
#[cfg(feature = "tokio")]
mod session;
#[cfg(feature = "tokio")]
mod session_state;
mod subscribers;

pub use address_options::AddressOptions;
pub use channel::{Channel, DEFAULT_SOCKET};
#[cfg(feature = "tokio")]
pub use client::{Client, Listener};
pub use error::Error;
#[cfg(feature = "tokio")]
pub use events::Events;
pub use inherited::{CHANNEL_VARIABLE, InheritedError, InheritedListener, listeners_from_environment};
#[cfg(feature = "tokio")]
pub use lease::Lease;
pub use listen_options::{Listen, ListenOptions};
pub use listener::{ListenerClient, ListenerGuard};
pub use portreeve_protocol::bounded::TooLong;
pub use portreeve_protocol::endpoint::EndpointError;
pub use portreeve_protocol::message::{ListenerId, Stopped, Welcome};
pub use portreeve_protocol::{
    Endpoint, Event, EventCode, Fault, FaultCode, InetEndpoint, List, Text, address, cluster, limit, metrics,
    policy, printable, reload, socket_activation, status, worker,
};

/// The example of README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
