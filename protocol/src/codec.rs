//! Encoding and decoding of message bodies.
//!
//! The format is bincode's legacy configuration: fixed-width little-endian integers, 32-bit enum tags, 64-bit lengths.
//! A body never exceeds [`MAX_BODY`], and a decoded message must use every byte of it.

use bincode::config::{Configuration, Fixint, LittleEndian};
use serde::{Deserialize, Serialize};

use crate::frame::{HEADER_LENGTH, Header, Kind, MAX_BODY, MAX_FRAME};

fn config() -> Configuration<LittleEndian, Fixint, bincode::config::Limit<MAX_BODY>> {
    bincode::config::legacy().with_limit::<MAX_BODY>()
}

/// The maximum size of one message in a byte stream: the largest configuration file has 32 MiB.
const MAX_STREAM_MESSAGE: usize = 33 << 20;

fn stream_config() -> Configuration<LittleEndian, Fixint, bincode::config::Limit<MAX_STREAM_MESSAGE>> {
    bincode::config::legacy().with_limit::<MAX_STREAM_MESSAGE>()
}

/// The reason that a body could not be decoded or encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The bytes are not a valid message of the expected type.
    #[error("invalid message body: {}", described(.0))]
    Decode(bincode::error::DecodeError),
    /// Bytes remain after the end of the message.
    #[error("{0} unexpected bytes after the end of the message")]
    Trailing(usize),
    /// The message is longer than [`MAX_BODY`] or than the buffer.
    #[error("the message does not fit in a frame: {0}")]
    Encode(bincode::error::EncodeError),
}

/// The error as text for people: that of this crate's types, without the names of the decoder's.
fn described(error: &bincode::error::DecodeError) -> String {
    use bincode::error::DecodeError;
    match error {
        DecodeError::OtherString(text) => text.clone(),
        DecodeError::Other(text) => (*text).to_owned(),
        DecodeError::UnexpectedEnd { additional } => format!("it ends {additional} bytes too early"),
        error => error.to_string(),
    }
}

/// Decodes a message that uses all of `body`.
///
/// # Errors
/// The bytes are not a valid message, or bytes remain after it.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, BodyError> {
    let (message, consumed) =
        bincode::serde::borrow_decode_from_slice(body, config()).map_err(BodyError::Decode)?;
    match body.len().saturating_sub(consumed) {
        0 => Ok(message),
        trailing => Err(BodyError::Trailing(trailing)),
    }
}

/// Allocates a buffer of [`MAX_FRAME`] bytes, which holds any frame.
pub fn frame_buffer() -> Box<[u8]> {
    vec![0; MAX_FRAME].into_boxed_slice()
}

/// Encodes a frame, header and body, at the start of `buffer` and returns its bytes.
///
/// # Errors
/// The message is longer than [`MAX_BODY`] or than the buffer.
pub fn encode<'b, T: Serialize>(
    buffer: &'b mut [u8],
    kind: Kind,
    request: u32,
    descriptors: u8,
    message: &T,
) -> Result<&'b [u8], BodyError> {
    let too_long = || BodyError::Encode(bincode::error::EncodeError::UnexpectedEnd);
    let (head, body) = buffer.split_at_mut_checked(HEADER_LENGTH).ok_or_else(too_long)?;
    let written = bincode::serde::encode_into_slice(message, body, config()).map_err(BodyError::Encode)?;
    // The header's length field could express more than MAX_BODY.
    let length = u16::try_from(written).ok().filter(|_| written <= MAX_BODY).ok_or_else(too_long)?;
    head.copy_from_slice(&Header { kind, request, descriptors, body: length }.encode());
    buffer.get(..HEADER_LENGTH + written).ok_or_else(too_long)
}

/// Appends an encoded message of at most 33 MiB to a byte stream that is not divided into frames. The broker and its
/// configuration reader exchange such streams.
///
/// # Errors
/// The message cannot be encoded, or it is longer.
pub fn append_to_stream<T: Serialize>(stream: &mut Vec<u8>, message: &T) -> Result<(), BodyError> {
    let bytes = bincode::serde::encode_to_vec(message, stream_config()).map_err(BodyError::Encode)?;
    stream.extend_from_slice(&bytes);
    Ok(())
}

/// Decodes the first message of a byte stream that [`append_to_stream`] wrote, and returns it with the rest of the
/// stream. A declared length of more than 33 MiB is refused before memory is allocated for it.
///
/// # Errors
/// The stream does not start with a whole valid message.
pub fn read_from_stream<'a, T: Deserialize<'a>>(stream: &'a [u8]) -> Result<(T, &'a [u8]), BodyError> {
    let (message, consumed) =
        bincode::serde::borrow_decode_from_slice(stream, stream_config()).map_err(BodyError::Decode)?;
    Ok((message, stream.get(consumed..).unwrap_or_default()))
}
