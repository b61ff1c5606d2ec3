//! The characters that a log line, a table or a label shows as they are. All others are escaped.
//!
//! Escaped are control characters, the separators of lines and paragraphs, the characters that change the direction of
//! text, spaces other than U+0020, marks that combine with the character before them, and everything else without a
//! shape of its own. So printed text stays in its line and its field, and looks different if it is different.

use std::fmt;

/// Whether a character is printed as it is.
pub fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // Letters and symbols that are empty: the Hangul fillers and the blank Braille pattern.
        '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' => false,
        // The standard library escapes what Unicode does not call a visible character of its own.
        c => c.escape_debug().len() == 1,
    }
}

/// Prints text with the characters that are not printable escaped as in a Rust string: `\n`, `\u{202e}`.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'t>(pub &'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(out, self.0, |out, c| write!(out, "{}", c.escape_default()))
    }
}

/// Prints text for a JSON string, without the quotes around it: a character that is not printable becomes `\u202e`.
#[derive(Clone, Copy, Debug)]
pub struct JsonEscaped<'t>(pub &'t str);

impl fmt::Display for JsonEscaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |c| matches!(c, '"' | '\\');
        self.0.split_inclusive(quoted).try_for_each(|part| {
            let (text, quote) = match part.strip_suffix(quoted) {
                Some(text) => (text, part.get(text.len()..).unwrap_or_default()),
                None => (part, ""),
            };
            JsonPart(text).fmt(out)?;
            if quote.is_empty() { Ok(()) } else { write!(out, "\\{quote}") }
        })
    }
}

/// Prints a part of a JSON document as it is, except for the characters that are not printable. They can occur in strings
/// only, and the document stays the same for a parser.
#[derive(Clone, Copy, Debug)]
pub struct JsonPart<'t>(pub &'t str);

impl fmt::Display for JsonPart<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(out, self.0, |out, c| {
            c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
        })
    }
}

/// Writes the printable parts of a text whole.
fn write_escaped(
    out: &mut fmt::Formatter<'_>,
    text: &str,
    escape: impl Fn(&mut fmt::Formatter<'_>, char) -> fmt::Result,
) -> fmt::Result {
    let mut rest = text;
    if rest.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return out.write_str(rest);
    }
    while let Some(at) = rest.find(|c| !is_printable(c)) {
        let (plain, from) = rest.split_at(at);
        out.write_str(plain)?;
        let mut chars = from.chars();
        chars.next().map_or(Ok(()), |c| escape(out, c))?;
        rest = chars.as_str();
    }
    out.write_str(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_hide_move_or_end_text_are_escaped() {
        let hostile = [
            '\0',
            '\n',
            '\r',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{a0}',
            '\u{ad}',
            '\u{301}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{180e}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{2800}',
            '\u{3000}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{fff9}',
            '\u{fffe}',
            '\u{e0041}',
            '\u{e0100}',
            '\u{f0000}',
        ];
        for c in hostile {
            assert!(!is_printable(c), "{:04x}", u32::from(c));
        }
        for c in "aé~ß中אب€😀 ".chars() {
            assert!(is_printable(c), "{c}");
        }
    }

    #[test]
    fn each_notation_is_that_of_its_language() {
        let text = "a\u{202e}\"b\\\n\u{e0041}";
        assert_eq!(Escaped(text).to_string(), "a\\u{202e}\"b\\\\n\\u{e0041}");
        assert_eq!(JsonEscaped(text).to_string(), r#"a\u202e\"b\\\u000a\udb40\udc41"#);
        assert_eq!(JsonPart("{\"a\":\"\\n\u{9b}\"}").to_string(), r#"{"a":"\n\u009b"}"#);
    }
}
