//! Messages between broker and reader: an order without a body, and a bundle in pieces.
//!
//! Promises: the size of a bundle is bounded, and pieces that do not belong to the last order are ignored.

use std::os::unix::net::UnixDatagram;

use portreeve_protocol::channel::{ReceiveError, receive_bytes};
use portreeve_protocol::codec::BodyError;
use portreeve_protocol::frame::MAX_BODY;
use portreeve_protocol::{Header, Kind, codec};
use serde::{Deserialize, Serialize};

use crate::config::{Bundle, MAX_BYTES};

/// The order to read the configuration.
pub(super) const READ: Kind = Kind(1);
/// The reader is confined, or the cause why not.
const CONFINED: Kind = Kind(2);
/// A piece of the bundle.
const PIECE: Kind = Kind(3);
/// The bundle is complete.
const END: Kind = Kind(4);

/// The maximum size of a bundle besides the texts: paths and file names.
const MAX_PATH_BYTES: u64 = 8 << 20;

/// The reader's first message.
#[derive(Serialize, Deserialize)]
struct Confined(Result<Vec<String>, String>);

/// Why a message of the reader is invalid.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Garbled(pub String);

/// Encodes the order with this number.
pub(super) fn order(number: u32) -> std::io::Result<Vec<u8>> {
    frame(READ, number, &[])
}

fn frame(kind: Kind, request: u32, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let length = u16::try_from(body.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let mut frame = Header { kind, request, descriptors: 0, body: length }.encode().to_vec();
    frame.extend_from_slice(body);
    Ok(frame)
}

/// The reader's first message.
pub(super) fn confined(result: Result<Vec<String>, String>) -> Result<Vec<u8>, BodyError> {
    let mut buffer = codec::frame_buffer();
    codec::encode(&mut buffer, CONFINED, 0, 0, &Confined(result)).map(<[u8]>::to_vec)
}

/// Receives the reader's first message.
pub(super) fn receive_confined(channel: &UnixDatagram) -> Result<Result<Vec<String>, String>, ReceiveError> {
    let mut buffer = codec::frame_buffer();
    let bytes = receive_bytes(channel, &mut buffer)?;
    let invalid = |error: &dyn std::fmt::Display| {
        ReceiveError::Os(std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()))
    };
    let packet = buffer.get(..bytes).unwrap_or_default();
    let (header, body) = Header::decode(packet).map_err(|error| invalid(&error))?;
    if header.kind != CONFINED {
        return Err(invalid(&"it is not the first message of a reader"));
    }
    codec::decode(body).map(|Confined(result)| result).map_err(|error| invalid(&error))
}

/// The frames of a bundle, in reply to the order with this number.
pub(super) fn frames(number: u32, bundle: &Bundle) -> impl Iterator<Item = std::io::Result<Vec<u8>>> {
    let pieces = bundle.bytes().chunks(MAX_BODY).map(move |piece| frame(PIECE, number, piece));
    pieces.chain(std::iter::once_with(move || frame(END, number, &[])))
}

/// Assembles a bundle from its pieces.
#[derive(Debug)]
pub struct Collector {
    number: u32,
    bytes: Vec<u8>,
}

impl Collector {
    /// Expects the reply to the order with this number.
    pub fn new(number: u32) -> Self {
        Self { number, bytes: Vec::new() }
    }

    /// Adds one packet; returns the bundle after the last one.
    pub fn take(&mut self, packet: &[u8]) -> Result<Option<Bundle>, Garbled> {
        let (header, body) = Header::decode(packet).map_err(|error| Garbled(error.to_string()))?;
        if header.request != self.number {
            return Ok(None);
        }
        match header.kind {
            PIECE if (self.bytes.len() + body.len()) as u64 <= MAX_BYTES + MAX_PATH_BYTES => {
                self.bytes.extend_from_slice(body);
                Ok(None)
            }
            PIECE => Err(Garbled(format!("it is longer than {} bytes", MAX_BYTES + MAX_PATH_BYTES))),
            END => Ok(Some(Bundle::from_bytes(std::mem::take(&mut self.bytes)))),
            other => Err(Garbled(format!("a frame of kind {other:?}"))),
        }
    }
}
