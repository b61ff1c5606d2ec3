//! The protocol between the Portreeve broker and its peers: frames, messages, faults, events and descriptor passing.
//!
//! `WIRE.md` in this directory specifies the protocol for implementations in other languages. `tests/golden.rs` pins
//! the bytes of every message.
//!
//! # Example
//!
//! A request is encoded into a frame, and the frame is decoded again:
//!
//! ```
//! use portreeve_protocol::message::{Hello, Operation as _};
//! use portreeve_protocol::{Header, Text, codec};
//!
//! let hello = Hello { client: Text::new("smtpd")?, features: 0 };
//! let mut buffer = codec::frame_buffer();
//! let frame = codec::encode(&mut buffer, Hello::KIND, 1, 0, &hello)?;
//!
//! let (header, body) = Header::decode(frame)?;
//! assert_eq!((header.kind, header.request), (Hello::KIND, 1));
//! assert_eq!(codec::decode::<Hello>(body)?, hello);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Promises: this crate makes no policy decision and opens no file or connection. No length that a peer declares causes
//! an allocation. A body is decoded to its last byte or refused. Every received descriptor is owned, close-on-exec, and
//! closed if it is not used.
#![forbid(unsafe_code)]

pub mod address;
pub mod bounded;
pub mod channel;
pub mod cluster;
pub mod codec;
pub mod endpoint;
pub mod event;
pub mod fault;
pub mod frame;
pub mod limit;
pub mod message;
pub mod metrics;
pub mod policy;
pub mod printable;
pub mod reload;
pub mod socket_activation;
pub mod status;
pub mod takeover;
pub mod trailing;
pub mod worker;

pub use bounded::{List, Text};
pub use endpoint::{Endpoint, InetEndpoint};
pub use event::{Event, EventCode};
pub use fault::{Fault, FaultCode};
pub use frame::{Header, Kind};
pub use message::Operation;
pub use trailing::Trailing;

/// The protocol version of this crate; every frame carries it.
pub const VERSION: u16 = 1;
