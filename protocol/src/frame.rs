//! Frames: a header of 16 bytes, little-endian, and a body; one frame is one SOCK_SEQPACKET packet.
//!
//! [`Header::decode`] checks that the header is complete, that magic and version match, and that the declared length
//! equals the packet's. It does not read the body.

use std::fmt;

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"PRTV";
/// The length of a header in bytes.
pub const HEADER_LENGTH: usize = 16;
/// The maximum length of a frame in bytes, header included.
pub const MAX_FRAME: usize = 64 * 1024;
/// The maximum length of a body in bytes.
pub const MAX_BODY: usize = MAX_FRAME - HEADER_LENGTH;
/// The maximum number of descriptors that one packet can carry: the kernel's SCM_MAX_FD, see unix(7).
pub const MAX_DESCRIPTORS: usize = 253;

/// The type of a frame. In a request it is the operation's number; in a reply, that number with the bit
/// [`Kind::REPLY`] set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(pub u16);

impl Kind {
    /// The bit that marks a reply.
    pub const REPLY: u16 = 0x8000;
    /// A [`Fault`](crate::Fault) in place of a reply.
    pub const FAULT: Kind = Kind(0xffff);
    /// An [`Event`](crate::Event), sent without a request.
    pub const EVENT: Kind = Kind(0xfffe);

    /// The kind of the reply to a request of this kind.
    pub const fn reply(self) -> Kind {
        Kind(self.0 | Kind::REPLY)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:#06x}", self.0)
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type of the body.
    pub kind: Kind,
    /// The request number. The peer chooses it, and the reply or fault repeats it. A request with number 0 gets no
    /// reply. A frame from the broker with number 0 is not the reply to any request.
    pub request: u32,
    /// The number of descriptors attached to the frame.
    pub descriptors: u8,
    /// The length of the body in bytes.
    pub body: u16,
}

/// The reason that a packet is not a valid frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The packet is shorter than a header. The value is its length.
    #[error("the packet has {0} bytes, fewer than the {HEADER_LENGTH} of a header")]
    Short(usize),
    /// The packet does not start with [`MAGIC`].
    #[error("the packet does not start with the magic bytes of this protocol")]
    Magic,
    /// The frame has another protocol version.
    #[error("protocol version {found} is not supported, only version {}", crate::VERSION)]
    Version {
        /// The version in the frame.
        found: u16,
        /// The request number, so that a fault can repeat it. Its offset is the same in every version.
        request: u32,
    },
    /// The reserved byte is not 0.
    #[error("the reserved byte of the header is {0}, not 0")]
    Reserved(u8),
    /// The declared length of the body differs from the received length.
    #[error("the header declares a body of {declared} bytes, but the packet has {received}")]
    Length {
        /// The length in the header.
        declared: usize,
        /// The length in the packet.
        received: usize,
    },
}

impl Header {
    /// Encodes the header.
    pub fn encode(&self) -> [u8; HEADER_LENGTH] {
        let [m0, m1, m2, m3] = MAGIC;
        let [v0, v1] = crate::VERSION.to_le_bytes();
        let [k0, k1] = self.kind.0.to_le_bytes();
        let [r0, r1, r2, r3] = self.request.to_le_bytes();
        let [b0, b1] = self.body.to_le_bytes();
        [m0, m1, m2, m3, v0, v1, k0, k1, r0, r1, r2, r3, b0, b1, self.descriptors, 0]
    }

    /// Splits a packet into its header and body.
    ///
    /// # Errors
    /// The packet is not a valid frame of this version.
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
