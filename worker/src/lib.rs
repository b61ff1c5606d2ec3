//! The client library of Portreeve: a worker asks its broker for listeners and serves on them, and for addresses.
//!
//! [`Client`] is for tokio, [`blocking::Client`] needs no runtime; both are opened on a [`Channel`]. A
//! [`Listener`] stops when it is dropped. [`listeners_from_environment`] adopts listeners that were bound
//! before this process began. Nothing here needs a privilege, a name service or a file.
//!
//! When the broker goes away, the sockets that it handed over serve on, and [`Client::closed`] tells. A client whose channel
//! was made with [`Channel::reconnect_through`] goes on instead: it opens the session again through the control socket of
//! whichever broker comes next, and asks it for what its guards hold. After a planned takeover, or where the service manager
//! stores descriptors, that gives the same sockets. After the end of a broker that nobody succeeded in time the guard's
//! own copy serves on, and its port is nobody else's while it is open. Addresses are renewed, or added again with their
//! epoch, as long as their lease has not ended; [`Lease::lost`] says why where that cannot be.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use portreeve::{Channel, Client, ListenOptions};
//!
//! let client = Client::open(Channel::from_environment()?, "mail").await?;
//! let listener = client.listen(&"*:25".parse()?, &ListenOptions::default()).await?.into_tcp()?;
//! let (connection, from) = listener.accept().await?;
//! # drop((connection, from));
//! listener.stop().await?;
//! # Ok(()) }
//! ```
#![deny(unsafe_code)]

mod address_options;
#[cfg(feature = "tokio")]
mod addresses;
mod ask;
pub mod blocking;
mod channel;
#[cfg(feature = "tokio")]
mod client;
mod error;
#[cfg(feature = "tokio")]
mod events;
mod exchange;
mod followers;
mod guard;
#[allow(unsafe_code)]
mod inherited;
#[cfg(feature = "tokio")]
mod lasting;
#[cfg(feature = "tokio")]
mod lease;
mod request;
#[cfg(feature = "tokio")]
mod session;
#[cfg(feature = "tokio")]
mod state;

pub use address_options::AddressOptions;
pub use channel::{Channel, DEFAULT_SOCKET};
#[cfg(feature = "tokio")]
pub use client::{Client, Listener};
pub use error::Error;
#[cfg(feature = "tokio")]
pub use events::Events;
pub use guard::{Guard, Number, Stopper};
pub use inherited::{CHANNEL_VARIABLE, InheritedError, InheritedListener, listeners_from_environment};
#[cfg(feature = "tokio")]
pub use lease::Lease;
pub use portreeve_protocol::message::{Listen, ListenOptions, ListenerId, Stopped, Welcome};
pub use portreeve_protocol::{
    Endpoint, Event, EventCode, Fault, FaultCode, InetEndpoint, address, limit, metrics, policy, reload,
    status,
};
