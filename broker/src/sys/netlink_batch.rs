//! Netlink messages that are sent in one go: numbered, laid out one after the other.
//!
//! Promises: data only, touches nothing. Source: netlink(7), struct nlmsghdr.

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_REQUEST};

/// The length of a message's header.
pub(super) const HEADER: usize = 16;
/// Where in it the flags are.
const FLAGS: usize = 6;

/// The messages.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    first: u32,
    next: u32,
    /// Where the message that was added last begins.
    last: usize,
    /// The number of the one whose acknowledgement ends the exchange.
    awaited: u32,
}

impl Batch {
    /// None yet; the first will have this number.
    pub(super) fn beginning_with(first: u32) -> Self {
        Self { bytes: Vec::new(), first, next: first, last: 0, awaited: first }
    }

    /// Adds a message; its flags beside NLM_F_REQUEST.
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

    /// Has the kernel acknowledge the message that was added last, which ends the exchange.
    pub fn acknowledge(&mut self) {
        self.awaited = self.next.wrapping_sub(1);
        let flags = self.bytes.get_mut(self.last + FLAGS..).and_then(<[u8]>::first_chunk_mut);
        if let Some(flags) = flags {
            *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
        }
    }

    /// How many messages it has.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks that")]
    pub fn len(&self) -> usize {
        self.place_of(self.next).unwrap_or_default()
    }

    /// Which of its messages has this number; beyond the last where none has.
    pub(super) fn place_of(&self, number: u32) -> Option<usize> {
        usize::try_from(number.wrapping_sub(self.first)).ok()
    }

    pub(super) fn next(&self) -> u32 {
        self.next
    }

    pub(super) fn awaited(&self) -> u32 {
        self.awaited
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
