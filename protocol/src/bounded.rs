//! Text and lists with a maximum length in their type.
//!
//! Decoding refuses a length beyond the maximum before it allocates memory, so a peer cannot make the broker allocate
//! by declaring a length. Printing a [`Text`] escapes the characters that are not [printable](crate::printable), so text
//! from a peer cannot forge a log line, hide or reorder what it says, or send escape sequences to a terminal.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::printable::Escaped;

/// UTF-8 text of at most `MAX` bytes.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text<const MAX: usize>(String);

/// A value exceeds the maximum length of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("length {found} exceeds the maximum of {max}")]
pub struct TooLong {
    /// The length of the refused value: bytes of a text, items of a list.
    pub found: usize,
    /// The maximum length.
    pub max: usize,
}

impl<const MAX: usize> Text<MAX> {
    /// Copies `text`, or fails if it is longer than `MAX` bytes.
    pub fn new(text: &str) -> Result<Self, TooLong> {
        if text.len() > MAX {
            return Err(TooLong { found: text.len(), max: MAX });
        }
        Ok(Self(text.to_owned()))
    }

    /// Copies the longest prefix of `text` that fits and ends at a character boundary.
    pub fn truncated(text: &str) -> Self {
        let mut end = text.len().min(MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text.get(..end).unwrap_or_default().to_owned())
    }

    /// The unescaped text: for comparisons, never for printing.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Deref for Text<MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// Prints the text with every character escaped that is not [printable](crate::printable).
impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(out)
    }
}

/// As a string literal.
impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", Escaped(&format!("{:?}", self.0)))
    }
}

impl<const MAX: usize> Serialize for Text<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded<const MAX: usize>;
        impl<const MAX: usize> Visitor<'_> for Bounded<MAX> {
            type Value = Text<MAX>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "text of at most {MAX} bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Text::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Bounded)
    }
}

/// A list of at most `MAX` items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> List<T, MAX> {
    /// Takes all items, or fails if there are more than `MAX`.
    pub fn new(items: Vec<T>) -> Result<Self, TooLong> {
        if items.len() > MAX {
            return Err(TooLong { found: items.len(), max: MAX });
        }
        Ok(Self(items))
    }

    /// Takes the first `MAX` items. An iterator passed by `&mut` keeps the rest.
    pub fn truncated(items: impl IntoIterator<Item = T>) -> Self {
        Self(items.into_iter().take(MAX).collect())
    }

    /// The items as a vector.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> Deref for List<T, MAX> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Serialize, const MAX: usize> Serialize for List<T, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
            type Value = List<T, MAX>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "a list of at most {MAX} items")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
                if let Some(found) = sequence.size_hint().filter(|found| *found > MAX) {
                    return Err(de::Error::custom(TooLong { found, max: MAX }));
                }
                let mut items = Vec::new();
                while let Some(item) = sequence.next_element()? {
                    if items.len() == MAX {
                        return Err(de::Error::custom(TooLong { found: MAX + 1, max: MAX }));
                    }
                    items.push(item);
                }
                Ok(List(items))
            }
        }
        deserializer.deserialize_seq(Bounded(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_escapes_what_is_not_printable() {
        let text: Text<64> = Text::new("a\nb\u{1b}[2Jc\0\u{202e}d").unwrap();
        assert_eq!(text.to_string(), r"a\nb\u{1b}[2Jc\u{0}\u{202e}d");
        let text: Text<64> = Text::new("a\"\\\n").unwrap();
        assert_eq!(format!("{text:?}"), r#""a\"\\\n""#);
    }

    #[test]
    fn truncation_ends_at_a_character_boundary() {
        assert_eq!(Text::<2>::truncated("aé").as_str(), "a");
        assert_eq!(Text::<3>::truncated("aé").as_str(), "aé");
    }
}
