//! Formats a log line as text, as JSON or as a journal entry.
//!
//! Promises: one event is one line with exactly the fields that the broker wrote, whatever their values are. Characters that
//! are not [printable](portreeve_protocol::printable) are escaped in every format.

use std::fmt::{self, Write};
use std::time::SystemTime;

use portreeve_protocol::printable::{Escaped, JsonEscaped};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};

/// The log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
    /// Entries of the systemd journal, with each field as a journal field.
    Journald,
}

impl std::str::FromStr for Format {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            "journald" => Ok(Format::Journald),
            _ => Err("--log-format takes text, json or journald"),
        }
    }
}

/// The target of the lines that record decisions.
pub(super) const AUDIT: &str = "audit";

fn is_audit(metadata: &Metadata<'_>) -> bool {
    metadata.target() == AUDIT
}

/// What a line is about: a decision, or the broker itself.
fn target(metadata: &Metadata<'_>) -> &'static str {
    if is_audit(metadata) { AUDIT } else { "broker" }
}

/// The time now, as RFC 3339 has it, in microseconds.
fn now() -> impl fmt::Display {
    humantime::format_rfc3339_micros(SystemTime::now())
}

/// Appends to a line. Writing to a String cannot fail; an error of a value's own Display ends that value.
fn append(line: &mut String, what: fmt::Arguments<'_>) {
    let _ = line.write_fmt(what);
}

/// Appends a value as it is if all its bytes are plain, otherwise with `escape`.
fn append_value(
    line: &mut String,
    value: fmt::Arguments<'_>,
    is_plain: impl Fn(u8) -> bool,
    escape: fn(&mut String, &str),
) {
    let begin = line.len();
    append(line, value);
    escape_from(line, begin, is_plain, escape);
}

/// Escapes what was appended since the line had this length, unless all its bytes are plain.
fn escape_from(
    line: &mut String,
    begin: usize,
    is_plain: impl Fn(u8) -> bool,
    escape: fn(&mut String, &str),
) {
    if !line.bytes().skip(begin).all(is_plain) {
        let written = line.split_off(begin);
        escape(line, &written);
    }
}

/// Appends a value: one word as it is, anything else in quotes, so that it cannot be taken for a further field.
fn append_word(line: &mut String, value: fmt::Arguments<'_>) {
    let begin = line.len();
    append(line, value);
    let mut written = line.bytes().skip(begin);
    if written.len() == 0 || !written.all(is_word) {
        escape_from(line, begin, is_json, append_json);
        line.insert(begin, '"');
        line.push('"');
    }
}

/// A byte of a value that is shown without quotes in a line of text.
fn is_word(byte: u8) -> bool {
    byte != b' ' && byte != b'=' && is_json(byte)
}

/// A byte that a JSON string has as it is. Other characters may need no escape either.
fn is_json(byte: u8) -> bool {
    is_printable_ascii(byte) && !matches!(byte, b'"' | b'\\')
}

/// A byte of ASCII that is printable.
fn is_printable_ascii(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

fn append_escaped(line: &mut String, text: &str) {
    append(line, format_args!("{}", Escaped(text)));
}

fn append_json(line: &mut String, text: &str) {
    match text.bytes().all(is_json) {
        true => line.push_str(text),
        false => append(line, format_args!("{}", JsonEscaped(text))),
    }
}

fn append_quoted(line: &mut String, text: &str) {
    line.push('"');
    append_json(line, text);
    line.push('"');
}

/// Appends the name of a field in a line of text.
fn append_name(line: &mut String, name: &str) {
    line.push(' ');
    line.push_str(name);
    line.push('=');
}

/// How lines of text look.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Whether a line begins with the time.
    pub time: bool,
    /// Whether the level has a colour.
    pub colour: bool,
}

/// Appends an event to `line` as text, with its line end.
pub fn text(line: &mut String, style: Style, event: &Event<'_>) {
    let (dim, colour, end) = match (style.colour, *event.metadata().level()) {
        (false, _) => ("", "", ""),
        (true, Level::ERROR) => ("\u{1b}[2m", "\u{1b}[31m", "\u{1b}[0m"),
        (true, Level::WARN) => ("\u{1b}[2m", "\u{1b}[33m", "\u{1b}[0m"),
        (true, _) => ("\u{1b}[2m", "\u{1b}[32m", "\u{1b}[0m"),
    };
    if style.time {
        append(line, format_args!("{dim}{}{end} ", now()));
    }
    for part in [colour, padded(*event.metadata().level()), end, " "] {
        line.push_str(part);
    }
    if is_audit(event.metadata()) {
        for part in [dim, AUDIT, ":", end, " "] {
            line.push_str(part);
        }
    }
    event.record(&mut TextFields(line));
    line.push('\n');
}

fn padded(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => " WARN",
        Level::INFO => " INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

/// A line's message and its fields as text. The message comes first, as the macros of `tracing` have it.
struct TextFields<'l>(&'l mut String);

impl Visit for TextFields<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        append_name(self.0, field.name());
        append(self.0, format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => append_escaped(self.0, value),
            name => {
                append_name(self.0, name);
                append_quoted(self.0, value);
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => append_value(self.0, format_args!("{value:?}"), is_printable_ascii, append_escaped),
            name => {
                append_name(self.0, name);
                append_word(self.0, format_args!("{value:?}"));
            }
        }
    }
}

/// Appends an event to `line` as a JSON object, with its line end.
pub fn json(line: &mut String, event: &Event<'_>) {
    let (level, target) = (event.metadata().level(), target(event.metadata()));
    append(line, format_args!("{{\"time\":\"{}\",\"level\":\"{level}\",\"target\":\"{target}\"", now()));
    event.record(&mut JsonMembers(line));
    line.push_str("}\n");
}

struct JsonMembers<'l>(&'l mut String);

impl JsonMembers<'_> {
    /// A member whose value is not a string.
    fn plain(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        append(self.0, format_args!(",\"{}\":{value}", field.name()));
    }

    fn string(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        append(self.0, format_args!(",\"{}\":\"", field.name()));
        append_value(self.0, value, is_json, append_json);
        self.0.push('"');
    }
}

impl Visit for JsonMembers<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, format_args!("{value}"));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.plain(field, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.string(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.string(field, format_args!("{value:?}"));
    }
}

/// Appends an event to `line` as a journal entry. A field is named `PORTREEVE_` and its name in capitals; an errno is
/// `ERRNO`. See systemd.journal-fields(7) and, for the form, systemd's Native Journal Protocol.
pub fn journald(line: &mut String, event: &Event<'_>) {
    let priority = match *event.metadata().level() {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    let (target, audit) = (target(event.metadata()), if is_audit(event.metadata()) { "audit: " } else { "" });
    append(
        line,
        format_args!(
            "PRIORITY={priority}\nSYSLOG_IDENTIFIER=portreeved\nPORTREEVE_TARGET={target}\nMESSAGE={audit}"
        ),
    );
    event.record(&mut TextFields(line));
    line.push('\n');
    event.record(&mut JournalFields(line));
}

/// The fields for programs. Each is one line, so only characters that are not printable need an escape.
struct JournalFields<'l>(&'l mut String);

impl Visit for JournalFields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => return,
            "errno" => self.0.push_str("ERRNO="),
            name => {
                self.0.push_str("PORTREEVE_");
                self.0.extend(name.chars().map(|c| c.to_ascii_uppercase()));
                self.0.push('=');
            }
        }
        append_value(self.0, format_args!("{value:?}"), is_printable_ascii, append_escaped);
        self.0.push('\n');
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use portreeve_protocol::printable::is_printable;
    use proptest::prelude::*;

    use super::*;

    /// Splits the fields of a line as a reader does: words, and text in quotes with escapes.
    fn split(line: &str) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        let mut rest = line;
        while let Some((name, value)) = rest.trim_start_matches(' ').split_once('=') {
            let (value, after) = match value.strip_prefix('"') {
                None => value.split_once(' ').unwrap_or((value, "")),
                Some(quoted) => {
                    let mut escaped = false;
                    let end = quoted.find(|c| {
                        let ends = c == '"' && !escaped;
                        escaped = c == '\\' && !escaped;
                        ends
                    });
                    quoted.split_at(end.unwrap())
                }
            };
            fields.push((name.to_owned(), value.to_owned()));
            rest = after.strip_prefix('"').unwrap_or(after);
        }
        fields
    }

    proptest! {
        #[test]
        fn a_line_has_the_fields_that_were_written_whatever_their_values(
            first in any::<String>(),
            second in "[ =\"\\\\a-c\u{202e}\u{2028}\n]{0,12}",
        ) {
            let mut line = String::new();
            for (name, value) in [("first", first.as_str()), ("second", &second), ("third", "3")] {
                append_name(&mut line, name);
                append_word(&mut line, format_args!("{value}"));
            }
            prop_assert!(line.chars().all(is_printable), "{line:?}");
            let split = split(&line);
            let names: Vec<&str> = split.iter().map(|(name, _)| name.as_str()).collect();
            prop_assert_eq!(names, ["first", "second", "third"], "{}", line);
            for ((_, shown), value) in split.iter().zip([&first, &second]) {
                let read: String = serde_json::from_str(&format!("\"{shown}\"")).unwrap();
                prop_assert_eq!(&read, value);
            }
        }
    }

    #[test]
    fn a_value_is_quoted_if_it_is_not_one_word() {
        for (value, shown) in [
            ("user-0", "user-0"),
            ("*:25", "*:25"),
            ("", r#""""#),
            ("user 0", r#""user 0""#),
            ("/run/a b=c", r#""/run/a b=c""#),
            ("a\"b\\", r#""a\"b\\""#),
            ("é\u{202e}", r#""é\u202e""#),
        ] {
            let mut line = String::new();
            append_word(&mut line, format_args!("{value}"));
            assert_eq!(line, shown);
        }
    }
}
