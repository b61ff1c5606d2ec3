//! The body of a netlink message: a fixed part and attributes.
//!
//! Data only. See netlink(7), and struct nlattr in include/uapi/linux/netlink.h.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLA_HEADER_SIZE, NlasIterator};

/// A fixed part of so many words of four bytes, and the attributes after it.
pub(super) struct Body<const WORDS: usize> {
    pub fixed: [[u8; 4]; WORDS],
    pub attributes: Vec<DefaultNla>,
}

impl<const WORDS: usize> Emitable for Body<WORDS> {
    fn buffer_len(&self) -> usize {
        self.fixed.as_flattened().len() + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let fixed = self.fixed.as_flattened();
        if let Some((head, rest)) = buffer.split_at_mut_checked(fixed.len()) {
            head.copy_from_slice(fixed);
            self.attributes.as_slice().emit(rest);
        }
    }
}

/// An attribute whose value is a text that ends with a NUL.
pub(super) fn text(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), b"\0"].concat())
}

/// An attribute whose value is a number in host byte order.
pub(super) fn number(kind: u16, number: u32) -> DefaultNla {
    DefaultNla::new(kind, number.to_ne_bytes().to_vec())
}

/// An attribute whose value is an address.
pub(super) fn address(kind: u16, address: IpAddr) -> DefaultNla {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    DefaultNla::new(kind, bytes)
}

/// An attribute that contains attributes.
pub(super) fn nest(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// The value of the first attribute of this kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(bytes).flatten().find(|attribute| attribute.kind() == kind)?;
    let length = usize::from(found.length());
    found.into_inner().get(NLA_HEADER_SIZE..length)
}
