//! Results on standard output: tables that fit the terminal, or JSON. Characters that are not printable are escaped, and only
//! a terminal gets colour.

use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd as _;

use comfy_table::{ContentArrangement, Table, presets};
use portreeve::printable::JsonPart;
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

use crate::failure::Failure;

/// Below this width, the gap between the columns of a table is smaller.
const NARROW: u16 = 60;

/// How results are printed.
#[derive(Clone, Copy)]
pub struct Output {
    /// Whether they are JSON.
    pub json: bool,
}

impl Output {
    /// Prints text as it is.
    pub fn text(self, text: impl std::fmt::Display) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::Output)
    }

    /// Prints a JSON value on one line.
    pub fn value(self, value: &Value) -> Result<(), Failure> {
        // JSON does not require this of DEL, the C1 control characters and those that reorder text, but terminals obey them.
        self.text(JsonPart(&value.to_string()))
    }
}

/// A style of text on a terminal.
#[derive(Clone, Copy)]
pub enum Style {
    /// The header of a table.
    Header,
    /// A warning to the operator.
    Warning,
    /// A failure.
    Error,
}

impl Style {
    /// The text in this style, if the stream is a terminal with colour.
    pub fn on(self, stream: &impl IsTerminal, text: &str) -> String {
        let code = match self {
            Style::Header => "1",
            Style::Warning => "33",
            Style::Error => "1;31",
        };
        if has_colour(stream) { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether the stream is a terminal with colour, and NO_COLOR is not set (no-color.org).
fn has_colour(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    stream.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb")
}

/// Prints a note on standard error, in one write so that lines of other programs do not split it.
pub fn note(text: impl std::fmt::Display) {
    let _ = io::stderr().write_all(format!("portreeve: {text}\n").as_bytes()); // a closed stderr changes no result
}

/// Prints an error on standard error, as [`note`] does.
pub fn error(text: impl std::fmt::Display) {
    let name = Style::Error.on(&io::stderr(), "portreeve:");
    let _ = io::stderr().write_all(format!("{name} {text}\n").as_bytes()); // the exit code remains
}

/// The progress of a long batch, shown only on a terminal.
pub struct Progress {
    total: usize,
    shown: bool,
}

impl Progress {
    /// The progress of a batch of this size.
    pub fn new(total: usize) -> Self {
        Self { total, shown: false }
    }

    /// Shows that this number of items are done.
    pub fn update(&mut self, count: usize) {
        if io::stderr().is_terminal() && (self.shown || count < self.total) {
            self.shown = true;
            let _ = io::stderr().write_all(format!("\r{count} of {}", self.total).as_bytes()); // progress is not essential
        }
    }
}

/// Clears the progress line.
impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = io::stderr().write_all(b"\r\x1b[K"); // progress is not essential
        }
    }
}

/// Waits until the reader of standard output has closed it. Never returns if it is a file or a terminal.
pub async fn reader_closed() {
    // The checked function would make the whole pipe non-blocking. A file has no reader, and cannot be watched.
    let copy = io::stdout().as_fd().try_clone_to_owned();
    match copy.and_then(Sender::from_owned_fd_unchecked) {
        Ok(watched) if !io::stdout().is_terminal() => drop(watched.ready(Interest::ERROR).await),
        _ => std::future::pending().await,
    }
}

/// A table without borders that fits the terminal.
pub fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some((width, _)) = size() {
        table.set_width(width);
    }
    if header.iter().any(|name| !name.is_empty()) {
        table.set_header(header);
    }
    table
}

/// The table as text.
pub fn render(mut table: Table) -> String {
    let gap = if table.width().is_some_and(|width| width < NARROW) { 1 } else { 2 };
    let last = table.column_count().saturating_sub(1);
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if number == last { 0 } else { gap }));
    }
    let text = table.trim_fmt();
    match (table.header().is_some(), text.split_once('\n')) {
        (true, Some((head, rest))) => format!("{}\n{rest}", Style::Header.on(&io::stdout(), head)),
        (true, None) => Style::Header.on(&io::stdout(), &text),
        _ => text,
    }
}

/// The columns and lines of the terminal. If the output is not a terminal, COLUMNS sets the columns.
pub fn size() -> Option<(u16, u16)> {
    let stdout = io::stdout();
    let from_environment = || Some((std::env::var("COLUMNS").ok()?.parse().ok()?, u16::MAX));
    if !stdout.is_terminal() {
        return from_environment();
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| (size.ws_col, size.ws_row));
    size.filter(|(columns, lines)| *columns > 0 && *lines > 0).or_else(from_environment)
}

/// A duration in its largest units: `42 s`, `1 h 2 min 3 s`, `3 d 4 h`.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min {} s", seconds % 60),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_shown_in_its_largest_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 0 s"),
            (3_723, "1 h 2 min 3 s"),
            (86_399, "23 h 59 min 59 s"),
            (3 * 86_400 + 4 * 3_600 + 59, "3 d 4 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
