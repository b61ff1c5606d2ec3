//! Messages between broker and launcher: frames as on any channel, with kinds of their own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use portreeve_protocol::channel::{ReceiveError, receive, receive_bytes};
use portreeve_protocol::{Header, Kind, List, codec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys::wait::Ending;

/// The only kind on this channel; the direction determines the body's type.
const MESSAGE: Kind = Kind(1);

/// A message from the broker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Stores the attached descriptors for the next [`Order::Spawn`]: one packet cannot carry all of them.
    Store,
    /// Starts the worker with the stored descriptors, the last of which is its channel.
    Spawn {
        /// LISTEN_FDNAMES, a name for each descriptor except the channel.
        names: Vec<String>,
        /// For each descriptor except the channel, the backlog with which the worker's process listens on it; `None` for a
        /// socket that is left as it is.
        backlogs: Vec<Option<u32>>,
        /// The place of the descriptor that is also the worker's standard input.
        stdin: Option<u32>,
    },
    /// Sends a signal to the worker.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// Ends the worker, if there is one, and then every process that workers have left: by the signal to stop the worker and SIGTERM, and by
    /// SIGKILL after this time.
    EndAll {
        /// The time in milliseconds.
        timeout_ms: u32,
    },
}

/// A message from the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The launcher is confined.
    Confined,
    /// The launcher could not confine itself; the failure as one line.
    NotConfined(String),
    /// The worker runs.
    Spawned {
        /// Its process id.
        pid: i32,
    },
    /// The worker could not be started, because its bind(2) cannot be answered by the broker; the cause.
    NotIntercepted(String),
    /// The worker could not be started.
    NotSpawned {
        /// The cause.
        errno: i32,
    },
    /// The result of the order to signal the worker.
    Signaled {
        /// The worker's process id; 0 if none runs.
        pid: i32,
        /// The error; 0 if the kernel has accepted the signal.
        errno: i32,
    },
    /// The worker has ended and is reaped.
    Exited {
        /// Its process id.
        pid: i32,
        /// How it ended.
        ending: Ending,
        /// Whether processes that this worker or an earlier one has left are running.
        leaves: bool,
    },
    /// Processes that workers have left are running: descendants of a worker whose own parent has ended.
    Left {
        /// How many.
        count: u32,
        /// The process ids of the first ones.
        pids: List<i32, MAX_NAMED>,
    },
    /// No process of a worker is left, after the order to end all.
    AllEnded,
}

/// How many of the processes that workers have left are named.
pub const MAX_NAMED: usize = 16;

/// Encodes a message.
pub fn packet(message: &impl Serialize, descriptors: usize) -> io::Result<Vec<u8>> {
    let invalid =
        |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let count = u8::try_from(descriptors).map_err(|error| invalid(&error))?;
    let mut buffer = codec::frame_buffer();
    let frame = codec::encode(&mut buffer, MESSAGE, 0, count, message).map_err(|error| invalid(&error))?;
    Ok(frame.to_vec())
}

fn decode<T: DeserializeOwned>(packet: Option<&[u8]>, descriptors: usize) -> Result<T, ReceiveError> {
    let invalid = |error: &dyn std::fmt::Display| {
        ReceiveError::Os(io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
    };
    let (header, body) = Header::decode(packet.unwrap_or_default()).map_err(|error| invalid(&error))?;
    if header.kind != MESSAGE || usize::from(header.descriptors) != descriptors {
        return Err(invalid(&"neither an order nor a report"));
    }
    codec::decode(body).map_err(|error| invalid(&error))
}

/// Receives an order and its descriptors, in the launcher.
pub fn receive_order<T: DeserializeOwned>(channel: &UnixDatagram) -> Result<(T, Vec<OwnedFd>), ReceiveError> {
    let mut buffer = codec::frame_buffer();
    let mut descriptors = Vec::new();
    let packet = receive(channel, &mut buffer, &mut descriptors)?;
    Ok((decode(buffer.get(..packet.bytes), descriptors.len())?, descriptors))
}

/// Receives a report, in the broker. The broker accepts no descriptors from the launcher.
pub fn receive_report<T: DeserializeOwned>(channel: impl AsFd) -> Result<T, ReceiveError> {
    let mut buffer = codec::frame_buffer();
    let bytes = receive_bytes(channel, &mut buffer)?;
    decode(buffer.get(..bytes), 0)
}
