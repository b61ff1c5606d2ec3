//! What both sides of a Portreeve channel say: messages, faults, frames and descriptors.
//!
//! This crate is the one place that knows bytes. It decides nothing and opens nothing; it promises that no
//! byte from a peer sizes an allocation, that a message is consumed to its end or refused, and that every
//! descriptor received is owned, close-on-exec and closed when it is not wanted. `WIRE.md` beside it says
//! the same for readers of other languages, and `tests/golden.rs` pins the bytes.
#![forbid(unsafe_code)]

pub mod address;
pub mod bounded;
pub mod channel;
pub mod codec;
pub mod endpoint;
pub mod event;
pub mod fault;
pub mod frame;
pub mod limit;
pub mod message;
pub mod metrics;
pub mod policy;
pub mod reload;
pub mod status;
pub mod takeover;

pub use bounded::{List, Text};
pub use endpoint::{Endpoint, InetEndpoint};
pub use event::{Event, EventCode};
pub use fault::{Fault, FaultCode};
pub use frame::{Header, Kind};
pub use message::Operation;

/// The protocol version that this crate speaks; it stands in every frame.
pub const VERSION: u16 = 1;
