//! Characters that a configuration cannot mean: bytes that are not UTF-8, NUL, and characters that only look like those of the
//! language, which documents and editors put in their place.
//!
//! Bytes that are not UTF-8 are harmless in comments and in the MTA's own scopes. [`decode`] keeps each as one character of
//! its own, and a value that is read is refused if it has one.

use super::source::{Sources, Span};
use super::tree::{Scalar, Value};

/// The byte 0xNN that is not UTF-8 is decoded as this character plus 0xNN, in the private use area of the last plane.
const BYTE: u32 = 0x10_ff00;

/// Decodes UTF-8. A text has at most four times as many bytes as the bytes that it stands for.
pub(super) fn decode(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        let mut text = String::with_capacity(error.as_bytes().len());
        for chunk in error.as_bytes().utf8_chunks() {
            text += chunk.valid();
            text.extend(chunk.invalid().iter().filter_map(|byte| char::from_u32(BYTE + u32::from(*byte))));
        }
        text
    })
}

/// The byte that a character stands for, if it stands for one that is not UTF-8.
fn byte(c: char) -> Option<u8> {
    u32::from(c).checked_sub(BYTE).and_then(|byte| u8::try_from(byte).ok())
}

/// The text with each byte that is not UTF-8 as `\xNN`. This has the same length, so all offsets stay valid.
pub(super) fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match byte(c) {
            Some(byte) => out += &format!("\\x{byte:02X}"),
            None => out.push(c),
        }
    }
    out
}

/// What is wrong with a character, and what to write in its place.
fn mistake(c: char) -> Option<(String, &'static str)> {
    let (name, remedy) = match c {
        '\0' => return Some(("the byte NUL".to_owned(), "remove it")),
        '\u{201c}' | '\u{201d}' | '\u{201e}' | '\u{201f}' | '\u{2018}' | '\u{2019}' | '\u{201a}'
        | '\u{201b}' | '\u{ab}' | '\u{bb}' | '\u{2039}' | '\u{203a}' | '\u{2032}' | '\u{2033}'
        | '\u{ff02}' => ("a typographic quote", "write \" instead"),
        '\u{a0}' | '\u{202f}' | '\u{2007}' => {
            ("a space that does not break", "write an ordinary space instead")
        }
        '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{ad}' => {
            ("a character without width", "remove it")
        }
        '\u{2000}'..='\u{200a}' | '\u{205f}' | '\u{3000}' => {
            ("a typographic space", "write an ordinary space instead")
        }
        '\u{2010}'..='\u{2015}' | '\u{2212}' => ("a typographic dash", "write - instead"),
        _ => {
            let byte = byte(c)?;
            let name = format!("the byte 0x{byte:02X}, which is not UTF-8 text");
            return Some((name, "save the file as UTF-8, or remove the byte"));
        }
    };
    let code = format!("U+{:04X}", u32::from(c));
    Some(match is_visible(name) {
        true => (format!("{c} ({code}), {name}"), remedy),
        false => (format!("{code}, {name}"), remedy),
    })
}

fn is_visible(name: &str) -> bool {
    name.contains("quote") || name.contains("dash")
}

/// Whether a quoted value may hold the character, for which there are reasons there.
fn is_text(c: char) -> bool {
    mistake(c).is_none_or(|(name, _)| is_visible(&name))
}

/// A character that a value cannot mean: its place, what is wrong with it, and the remedy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub span: Span,
    pub what: String,
    pub remedy: &'static str,
}

/// The first such character of a value. `free` values are any text that is quoted.
pub(super) fn in_value(value: &Value, free: bool, sources: &Sources) -> Option<Found> {
    let in_scalar = |scalar: &Scalar| in_scalar(*scalar, free, sources);
    match value {
        Value::Scalar(scalar) => in_scalar(scalar),
        Value::List { items, .. } | Value::Rules { endpoints: items, .. } => items.iter().find_map(in_scalar),
        Value::Dict { entries, .. } => {
            entries.iter().find_map(|(key, value)| in_scalar(key).or_else(|| in_scalar(value)))
        }
    }
}

/// The first such character of a word.
pub(super) fn in_scalar(scalar: Scalar, free: bool, sources: &Sources) -> Option<Found> {
    let allowed = |c: char| scalar.quoted && if free { c != '\0' && byte(c).is_none() } else { is_text(c) };
    find(sources.text(scalar.span), scalar.span, allowed)
}

/// The first such character of the part of a line that is neither in quotes nor in a comment.
pub(super) fn in_line(line: &str, line_span: Span) -> Option<Found> {
    let (mut quoted, mut end) = (false, line.len());
    let mut outside = String::with_capacity(line.len());
    for (at, c) in line.char_indices() {
        match c {
            '"' if quoted || line.get(at + 1..).is_some_and(|rest| rest.contains('"')) => quoted = !quoted,
            '#' if !quoted => {
                end = at;
                break;
            }
            _ => {}
        }
        // A character of the same length, so that offsets stay valid.
        match quoted {
            true => outside.extend(std::iter::repeat_n('x', c.len_utf8())),
            false => outside.push(c),
        }
    }
    // The parser has a message for NUL.
    let outside = outside.get(..end).filter(|outside| !outside.contains('\0'))?;
    find(outside, line_span, |_| false)
}

fn find(text: &str, span: Span, allowed: impl Fn(char) -> bool) -> Option<Found> {
    let (at, c, (what, remedy)) = text
        .char_indices()
        .filter(|(_, c)| !c.is_ascii_graphic() && !allowed(*c))
        .find_map(|(at, c)| Some((at, c, mistake(c)?)))?;
    let start = span.start.saturating_add(u32::try_from(at).unwrap_or(u32::MAX));
    let length = u32::try_from(c.len_utf8()).unwrap_or(1);
    Some(Found { span: Span { start, end: start.saturating_add(length), ..span }, what, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_text_keep_their_place_and_are_shown() {
        let text = decode(b"a\xfcb\xe2\x80c\xc3\xbc".to_vec());
        assert_eq!(text.chars().count(), 7);
        assert_eq!(shown(&text), r"a\xFCb\xE2\x80cü");
        assert_eq!(shown(&text).len(), text.len());
        assert_eq!(decode("ü".into()), "ü");
    }
}
