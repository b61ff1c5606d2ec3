//! A batch of netlink messages for one send(2): numbered, and laid out one after the other.
//!
//! Data only. See netlink(7), struct nlmsghdr.

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_REQUEST};

/// The length of struct nlmsghdr.
pub(super) const HEADER: usize = 16;
/// The offset of nlmsg_flags.
const FLAGS: usize = 6;

/// Messages with consecutive sequence numbers.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    first: u32,
    next: u32,
    /// The offset of the last message.
    last: usize,
    /// The sequence number of the message whose acknowledgement ends the exchange.
    acknowledged: u32,
}

impl Batch {
    /// An empty batch; its first message gets the number `first`.
    pub(super) fn starting_at(first: u32) -> Self {
        Self { bytes: Vec::new(), first, next: first, last: 0, acknowledged: first }
    }

    /// Adds a message; NLM_F_REQUEST is added to its flags.
    pub fn push(&mut self, kind: u16, flags: u16, body: &impl Emitable) {
        let length = HEADER + body.buffer_len();
        let start = self.bytes.len();
        self.bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend(self.next.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.resize(start + length.next_multiple_of(4), 0);
        if let Some(room) = self.bytes.get_mut(start + HEADER..start + length) {
            body.emit(room);
        }
        self.last = start;
        self.next = self.next.wrapping_add(1);
    }

    /// Requests an acknowledgement of the last message; it ends the exchange.
    pub fn acknowledge_last(&mut self) {
        self.acknowledged = self.next.wrapping_sub(1);
        let flags = self.bytes.get_mut(self.last + FLAGS..).and_then(<[u8]>::first_chunk_mut);
        if let Some(flags) = flags {
            *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
        }
    }

    /// The number of messages.
    #[expect(clippy::len_without_is_empty, reason = "unused")]
    pub fn len(&self) -> usize {
        self.position(self.next).unwrap_or_default()
    }

    /// The position of the message with this sequence number; beyond the last message if the batch has no such number.
    pub(super) fn position(&self, sequence: u32) -> Option<usize> {
        usize::try_from(sequence.wrapping_sub(self.first)).ok()
    }

    /// The sequence number after the last message.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// The sequence number whose acknowledgement ends the exchange.
    pub(super) fn acknowledged(&self) -> u32 {
        self.acknowledged
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
