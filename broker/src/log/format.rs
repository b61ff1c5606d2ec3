//! Formats a log line as JSON or as a journal entry. The text format is that of the tracing library.
//!
//! Promises: one event is one line: control characters in fields are escaped in every format.

use std::fmt::{self, Write};

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

/// Text with control characters escaped, including C1 ones, which terminals obey.
struct Escaped<'t>(&'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '"' | '\\' => write!(out, "\\{c}"),
            c if c.is_control() => write!(out, "\\u{:04x}", u32::from(c)),
            c => out.write_char(c),
        })
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
        write!(out, "\",\"level\":\"{}\",\"target\":\"{}\"", metadata.level(), metadata.target())?;
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
        self.member(field, format_args!("\"{}\"", Escaped(value)));
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
        let mut entry = Entry { message: String::new(), suffix: String::new(), fields: String::new() };
        event.record(&mut entry);
        write!(
            out,
            "PRIORITY={priority}\nSYSLOG_IDENTIFIER=portreeved\nPORTREEVE_TARGET={}\nMESSAGE={}: {}{}\n{}",
            metadata.target(),
            metadata.target(),
            entry.message,
            entry.suffix,
            entry.fields
        )
    }
}

/// An entry's message, its fields as text, and its fields for programs.
struct Entry {
    message: String,
    suffix: String,
    fields: String,
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        let (name, value) = (field.name(), Escaped(value));
        // Writing to a String cannot fail.
        let _ = match name {
            "message" => write!(self.message, "{value}"),
            _ => {
                let _ = write!(self.suffix, " {name}={value}");
                match name {
                    "errno" => write!(self.fields, "ERRNO="),
                    _ => write!(self.fields, "PORTREEVE_{}=", name.to_uppercase()),
                }
                .and_then(|()| writeln!(self.fields, "{value}"))
            }
        };
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
