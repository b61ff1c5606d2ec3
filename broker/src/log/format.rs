//! Formats a log line as text, as JSON or as a journal entry.
//!
//! Promises: one event is one line with exactly the fields that the broker wrote, whatever their values are. Characters that
//! are not [printable](portreeve_protocol::printable) are escaped in every format.

use std::fmt::{self, Write};

use portreeve_protocol::printable::{Escaped, JsonEscaped};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

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

fn is_audit(event: &Event<'_>) -> bool {
    event.metadata().target() == AUDIT
}

/// What a line is about: a decision, or the broker itself.
fn target(event: &Event<'_>) -> &'static str {
    if is_audit(event) { AUDIT } else { "broker" }
}

/// The value of a field in a line of text: one word as it is, anything else in quotes, so that it cannot be taken for a
/// further field.
struct Value<'t>(&'t str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_word = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
        match !self.0.is_empty() && self.0.bytes().all(is_word) {
            true => out.write_str(self.0),
            false => Quoted(self.0).fmt(out),
        }
    }
}

/// Text in quotes.
struct Quoted<'t>(&'t str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{}\"", JsonEscaped(self.0))
    }
}

/// See [`Format::Text`].
pub struct Text {
    /// Whether a line begins with the time.
    pub time: bool,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let (dim, colour, end) = match (out.has_ansi_escapes(), *metadata.level()) {
            (false, _) => ("", "", ""),
            (true, Level::ERROR) => ("\u{1b}[2m", "\u{1b}[31m", "\u{1b}[0m"),
            (true, Level::WARN) => ("\u{1b}[2m", "\u{1b}[33m", "\u{1b}[0m"),
            (true, _) => ("\u{1b}[2m", "\u{1b}[32m", "\u{1b}[0m"),
        };
        if self.time {
            out.write_str(dim)?;
            SystemTime.format_time(&mut out)?;
            write!(out, "{end} ")?;
        }
        write!(out, "{colour}{:>5}{end} ", metadata.level())?;
        if is_audit(event) {
            write!(out, "{dim}{AUDIT}:{end} ")?;
        }
        let mut fields = Fields { message: String::new(), suffix: String::new() };
        event.record(&mut fields);
        writeln!(out, "{}{}", fields.message, fields.suffix)
    }
}

/// A line's message, and its fields as text.
struct Fields {
    message: String,
    suffix: String,
}

impl Fields {
    /// Adds a field whose value may be text of any kind.
    fn add(&mut self, name: &str, value: &dyn fmt::Display) {
        // Writing to a String cannot fail.
        let _ = match name {
            "message" => write!(self.message, "{value}"),
            _ => write!(self.suffix, " {name}={value}"),
        };
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.add("message", &Escaped(value)),
            name => self.add(name, &Quoted(value)),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.add("message", &Escaped(&value)),
            name => self.add(name, &Value(&value)),
        }
    }
}

/// See [`Format::Json`].
pub struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        out.write_str("{\"time\":\"")?;
        SystemTime.format_time(&mut out)?;
        write!(out, "\",\"level\":\"{}\",\"target\":\"{}\"", metadata.level(), target(event))?;
        let mut members = Members { out, result: Ok(()) };
        event.record(&mut members);
        members.result?;
        members.out.write_str("}\n")
    }
}

struct Members<'w> {
    out: Writer<'w>,
    result: fmt::Result,
}

impl Members<'_> {
    fn member(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let write = |out: &mut Writer<'_>| write!(out, ",\"{}\":{value}", field.name());
        self.result = self.result.and_then(|()| write(&mut self.out));
    }
}

impl Visit for Members<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, format_args!("{value}"));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.member(field, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, format_args!("{}", Quoted(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// See [`Format::Journald`]. A field is named `PORTREEVE_` and its name in capitals; an errno is `ERRNO`. See
/// systemd.journal-fields(7) and, for the form, systemd's Native Journal Protocol.
pub struct Journald;

impl<S, N> FormatEvent<S, N> for Journald
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let priority = match *metadata.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let text = Fields { message: String::new(), suffix: String::new() };
        let mut entry = Entry { text, fields: String::new() };
        event.record(&mut entry);
        write!(
            out,
            "PRIORITY={priority}\nSYSLOG_IDENTIFIER=portreeved\nPORTREEVE_TARGET={}\nMESSAGE={}{}{}\n{}",
            target(event),
            if is_audit(event) { "audit: " } else { "" },
            entry.text.message,
            entry.text.suffix,
            entry.fields
        )
    }
}

/// An entry's message, its fields as text, and its fields for programs.
struct Entry {
    text: Fields,
    fields: String,
}

impl Entry {
    /// A field of its own is one line, so only characters that are not printable need an escape.
    fn add(&mut self, name: &str, value: &str) {
        // Writing to a String cannot fail.
        let _ = match name {
            "message" => Ok(()),
            "errno" => writeln!(self.fields, "ERRNO={}", Escaped(value)),
            _ => writeln!(self.fields, "PORTREEVE_{}={}", name.to_uppercase(), Escaped(value)),
        };
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text.record_str(field, value);
        self.add(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text.record_debug(field, value);
        self.add(field.name(), &format!("{value:?}"));
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
            let mut fields = Fields { message: String::new(), suffix: String::new() };
            fields.add("first", &Value(&first));
            fields.add("second", &Quoted(&second));
            fields.add("third", &Value("3"));
            let line = fields.suffix;
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
            assert_eq!(Value(value).to_string(), shown);
        }
    }
}
