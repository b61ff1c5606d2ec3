//! Message bodies: bincode's legacy encoding (fixed-width little-endian integers, 32-bit enum tags, 64-bit
//! lengths), held to the frame's limit and consumed to the last byte.

use bincode::config::{Configuration, Fixint, LittleEndian};
use serde::{Deserialize, Serialize};

use crate::frame::{HEADER_LENGTH, Header, Kind, MAX_BODY, MAX_FRAME};

fn config() -> Configuration<LittleEndian, Fixint, bincode::config::Limit<MAX_BODY>> {
    bincode::config::legacy().with_limit::<MAX_BODY>()
}

/// Why a body was refused.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The bytes are no such message.
    #[error("the body is no such message: {0}")]
    Decode(bincode::error::DecodeError),
    /// The message ended before the body did.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// The message does not fit in a frame.
    #[error("the message does not fit in a frame: {0}")]
    Encode(bincode::error::EncodeError),
}

/// Decodes a body, all of it.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, BodyError> {
    let (message, consumed) =
        bincode::serde::borrow_decode_from_slice(body, config()).map_err(BodyError::Decode)?;
    match body.len().saturating_sub(consumed) {
        0 => Ok(message),
        trailing => Err(BodyError::Trailing(trailing)),
    }
}

/// A buffer that holds any frame.
pub fn frame_buffer() -> Box<[u8]> {
    vec![0; MAX_FRAME].into_boxed_slice()
}

/// Writes a whole frame into `buffer` and gives the part that it fills.
pub fn encode<'b, T: Serialize>(
    buffer: &'b mut [u8],
    kind: Kind,
    request: u32,
    descriptors: u8,
    message: &T,
) -> Result<&'b [u8], BodyError> {
    let short = || BodyError::Encode(bincode::error::EncodeError::UnexpectedEnd);
    let (head, body) = buffer.split_at_mut_checked(HEADER_LENGTH).ok_or_else(short)?;
    let written = bincode::serde::encode_into_slice(message, body, config()).map_err(BodyError::Encode)?;
    // The field has room for more than a frame has.
    let length = u16::try_from(written).ok().filter(|_| written <= MAX_BODY).ok_or_else(short)?;
    head.copy_from_slice(&Header { kind, request, descriptors, body: length }.encode());
    buffer.get(..HEADER_LENGTH + written).ok_or_else(short)
}

/// Adds a message to a stream that is no frame, however long it is: for two processes that trust each other's lengths
/// no more than that they hold what was sent.
pub fn append_to_stream<T: Serialize>(stream: &mut Vec<u8>, message: &T) -> Result<(), BodyError> {
    let bytes =
        bincode::serde::encode_to_vec(message, bincode::config::legacy()).map_err(BodyError::Encode)?;
    stream.extend_from_slice(&bytes);
    Ok(())
}

/// The first message of a stream that [`append_to_stream`] made, and what follows it. Nothing is allocated for a length that the
/// stream has not.
pub fn read_from_stream<'a, T: Deserialize<'a>>(stream: &'a [u8]) -> Result<(T, &'a [u8]), BodyError> {
    let (message, consumed) = bincode::serde::borrow_decode_from_slice(stream, bincode::config::legacy())
        .map_err(BodyError::Decode)?;
    Ok((message, stream.get(consumed..).unwrap_or_default()))
}
