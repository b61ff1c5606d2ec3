//! What broker and launcher say to each other: the same frames and bodies as any channel, kinds of its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use portreeve_protocol::channel::{ReceiveError, receive, receive_bare};
use portreeve_protocol::{Header, Kind, codec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The one kind on this channel: what a body is follows from its direction.
const MESSAGE: Kind = Kind(1);

/// From the broker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Keeps the descriptors that came along for the next [`Order::Spawn`]: one packet does not hold them all.
    Keep,
    /// Starts the worker with the descriptors kept, the last of which is its channel.
    Spawn {
        /// LISTEN_FDNAMES, a name for each descriptor but the channel.
        names: Vec<String>,
    },
    /// Sends a signal to the worker, if there is one.
    Signal(i32),
}

/// From the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The launcher has the worker's identity and could not get back from it.
    Confined,
    /// The launcher could not confine itself: the failure's one line.
    NotConfined(String),
    /// The worker runs.
    Spawned {
        /// Its process id.
        pid: i32,
    },
    /// The worker could not be started.
    NotSpawned {
        /// Why.
        errno: i32,
    },
    /// The worker is gone and reaped.
    Exited {
        /// Its process id.
        pid: i32,
        /// How it ended.
        how: Ending,
    },
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It called exit(3).
    Exit(i32),
    /// A signal ended it.
    Signal(i32),
}

impl std::fmt::Display for Ending {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::Exit(code) => write!(out, "exited with code {code}"),
            Ending::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(signal) => write!(out, "was ended by {signal}"),
                Err(_) => write!(out, "was ended by signal {signal}"),
            },
        }
    }
}

/// The bytes of a message.
pub fn packet(message: &impl Serialize, descriptors: usize) -> io::Result<Vec<u8>> {
    let invalid =
        |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let count = u8::try_from(descriptors).map_err(|error| invalid(&error))?;
    let mut buffer = codec::frame_buffer();
    let frame = codec::encode(&mut buffer, MESSAGE, 0, count, message).map_err(|error| invalid(&error))?;
    Ok(frame.to_vec())
}

fn open<T: DeserializeOwned>(packet: Option<&[u8]>, descriptors: usize) -> Result<T, ReceiveError> {
    let invalid = |error: &dyn std::fmt::Display| {
        ReceiveError::Os(io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
    };
    let (header, body) = Header::decode(packet.unwrap_or_default()).map_err(|error| invalid(&error))?;
    if header.kind != MESSAGE || usize::from(header.descriptors) != descriptors {
        return Err(invalid(&"neither an order nor a report"));
    }
    codec::decode(body).map_err(|error| invalid(&error))
}

/// Takes an order and its descriptors, on the launcher's side.
pub fn take<T: DeserializeOwned>(channel: &UnixDatagram) -> Result<(T, Vec<OwnedFd>), ReceiveError> {
    let mut buffer = codec::frame_buffer();
    let mut descriptors = Vec::new();
    let packet = receive(channel, &mut buffer, &mut descriptors)?;
    Ok((open(buffer.get(..packet.bytes), descriptors.len())?, descriptors))
}

/// Takes a report, on the broker's side: nothing of the launcher's identity gives the broker a descriptor.
pub fn take_bare<T: DeserializeOwned>(channel: impl AsFd) -> Result<T, ReceiveError> {
    let mut buffer = codec::frame_buffer();
    let bytes = receive_bare(channel, &mut buffer)?;
    open(buffer.get(..bytes), 0)
}
