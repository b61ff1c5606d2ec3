//! A field at the end of a message that a later release has added.
//!
//! Promises: a message without it is encoded as before the field existed, so that a peer of an earlier release understands it,
//! and a message of such a peer is decoded.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nothing, or a byte 1 and the value. Only the last field of a message can have this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailing<T>(pub Option<T>);

impl<T> Default for Trailing<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Serialize> Serialize for Trailing<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            None => serializer.serialize_unit(),
            Some(value) => (1_u8, value).serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Trailing<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(2, TrailingVisitor(PhantomData)).map(Self)
    }
}

struct TrailingVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TrailingVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the end of the message, or the byte 1 and a value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Option<T>, A::Error> {
        match sequence.next_element::<u8>() {
            // Reading a byte fails only at the end of the message.
            Err(_) => Ok(None),
            Ok(Some(1)) => sequence.next_element(),
            Ok(tag) => {
                Err(A::Error::invalid_value(Unexpected::Unsigned(tag.unwrap_or_default().into()), &self))
            }
        }
    }
}
