//! The frame: one SOCK_SEQPACKET packet, a fixed header of little-endian integers and a body.
//!
//! Decoding promises that the header is whole, is ours, and agrees with the packet's length; it looks at no
//! byte of the body.

use std::fmt;

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"PRTV";
/// Bytes of a header.
pub const HEADER_LENGTH: usize = 16;
/// The longest frame, header included.
pub const MAX_FRAME: usize = 64 * 1024;
/// The longest body.
pub const MAX_BODY: usize = MAX_FRAME - HEADER_LENGTH;
/// The most descriptors that one packet can carry: the kernel's SCM_MAX_FD, see unix(7).
pub const MAX_DESCRIPTORS: usize = 253;

/// What a frame is: an operation's number in a request, the same with [`Kind::REPLY`] in its reply.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(pub u16);

impl Kind {
    /// The bit that marks a reply.
    pub const REPLY: u16 = 0x8000;
    /// A refusal or failure instead of the reply.
    pub const FAULT: Kind = Kind(0xffff);
    /// Something that happened, told unasked: an [`Event`](crate::Event).
    pub const EVENT: Kind = Kind(0xfffe);

    /// The kind of the reply to this request.
    pub const fn reply(self) -> Kind {
        Kind(self.0 | Kind::REPLY)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:#06x}", self.0)
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: Kind,
    /// Chosen by the peer for a request, repeated in the reply. A request with 0 wants no answer; any other frame
    /// with 0 answers none.
    pub request: u32,
    /// How many descriptors ride with the frame.
    pub descriptors: u8,
    /// Bytes of the body.
    pub body: u16,
}

/// Why a packet is not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header.
    #[error("a packet of {0} bytes is shorter than a frame's header of {HEADER_LENGTH}")]
    Short(usize),
    /// Not this protocol.
    #[error("the packet does not begin with the protocol's magic bytes")]
    Magic,
    /// Another version of this protocol. The request's number is told so that a fault can name it.
    #[error("protocol version {found} is not spoken here, {} is", crate::VERSION)]
    Version {
        /// The version in the frame.
        found: u16,
        /// The request's number, which every version keeps at the same place.
        request: u32,
    },
    /// A reserved byte is not zero.
    #[error("the header's reserved byte is {0}, not 0")]
    Reserved(u8),
    /// The declared and the received body differ.
    #[error("the header declares a body of {declared} bytes and the packet has {received}")]
    Length {
        /// As in the header.
        declared: usize,
        /// As in the packet.
        received: usize,
    },
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        let (magic, rest) = bytes.split_at_mut(4);
        magic.copy_from_slice(&MAGIC);
        let fields = crate::VERSION
            .to_le_bytes()
            .into_iter()
            .chain(self.kind.0.to_le_bytes())
            .chain(self.request.to_le_bytes())
            .chain(self.body.to_le_bytes())
            .chain([self.descriptors, 0]);
        rest.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }

    /// Splits a packet into its header and body.
    pub fn decode(packet: &[u8]) -> Result<(Header, &[u8]), FrameError> {
        let Some((bytes, body)) = packet.split_first_chunk::<HEADER_LENGTH>() else {
            return Err(FrameError::Short(packet.len()));
        };
        let [m0, m1, m2, m3, v0, v1, k0, k1, r0, r1, r2, r3, b0, b1, descriptors, reserved] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::Magic);
        }
        let request = u32::from_le_bytes([r0, r1, r2, r3]);
        let found = u16::from_le_bytes([v0, v1]);
        if found != crate::VERSION {
            return Err(FrameError::Version { found, request });
        }
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let declared = u16::from_le_bytes([b0, b1]);
        if usize::from(declared) != body.len() {
            return Err(FrameError::Length { declared: declared.into(), received: body.len() });
        }
        let kind = Kind(u16::from_le_bytes([k0, k1]));
        Ok((Header { kind, request, descriptors, body: declared }, body))
    }
}
