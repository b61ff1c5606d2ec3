//! Results on standard output: tables that fit the terminal, or JSON. Nothing unescaped, and colour on a terminal alone.

use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd as _;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

use crate::failure::Failure;

/// With fewer columns than this, those of a table stand closer.
const NARROW: u16 = 60;

/// How results are printed.
#[derive(Clone, Copy)]
pub struct Output {
    /// As JSON.
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
        // JSON lets DEL and the C1 controls through; terminals act on them.
        let mut escaped = String::new();
        for c in value.to_string().chars() {
            match c {
                '\u{7f}'..='\u{9f}' => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
                other => escaped.push(other),
            }
        }
        self.text(escaped)
    }
}

/// What stands out on a terminal.
#[derive(Clone, Copy)]
pub enum Style {
    /// The head of a table.
    Head,
    /// Something that the operator should know.
    Warning,
    /// A failure.
    Error,
}

impl Style {
    /// The text in this style, where standard output, or error, is a terminal that has colour.
    pub fn on(self, stream: &impl IsTerminal, text: &str) -> String {
        let code = match self {
            Style::Head => "1",
            Style::Warning => "33",
            Style::Error => "1;31",
        };
        if has_colour(stream) { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A terminal, unless NO_COLOR is set (no-color.org) or it is a dumb one.
fn has_colour(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    stream.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb")
}

/// Tells the user something that is no result. In one write, so that it stays whole among others' lines.
pub fn note(text: impl std::fmt::Display) {
    let _ = io::stderr().write_all(format!("portreeve: {text}\n").as_bytes());
}

/// How far a long batch is, on a terminal and nowhere else.
pub struct Progress {
    total: usize,
    shown: bool,
}

impl Progress {
    /// A batch of so many.
    pub fn of(total: usize) -> Self {
        Self { total, shown: false }
    }

    /// So many are done.
    pub fn done(&mut self, count: usize) {
        if io::stderr().is_terminal() && (self.shown || count < self.total) {
            self.shown = true;
            let _ = io::stderr().write_all(format!("\r{count} of {}", self.total).as_bytes());
        }
    }
}

/// What follows is not to stand beside it.
impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

/// Waits until nobody reads standard output any more; for ever where it is a file or a terminal.
pub async fn reader_gone() {
    // Unchecked, for a check would set the whole pipe to non-blocking. A file cannot be watched, and has no reader.
    let copy = io::stdout().as_fd().try_clone_to_owned();
    match copy.and_then(Sender::from_owned_fd_unchecked) {
        Ok(watched) if !io::stdout().is_terminal() => drop(watched.ready(Interest::ERROR).await),
        _ => std::future::pending().await,
    }
}

/// A table without lines, as wide as the terminal at most.
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
        (true, Some((head, rest))) => format!("{}\n{rest}", Style::Head.on(&io::stdout(), head)),
        (true, None) => Style::Head.on(&io::stdout(), &text),
        _ => text,
    }
}

/// The terminal's columns and lines; where the output is none, the columns that COLUMNS asks for.
pub fn size() -> Option<(u16, u16)> {
    let stdout = io::stdout();
    let asked = || Some((std::env::var("COLUMNS").ok()?.parse().ok()?, u16::MAX));
    if !stdout.is_terminal() {
        return asked();
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| (size.ws_col, size.ws_row));
    size.filter(|(columns, lines)| *columns > 0 && *lines > 0).or_else(asked)
}
