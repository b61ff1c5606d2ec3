//! Results on standard output: tables that fit the terminal, or JSON. No colour, and nothing unescaped.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use crate::failure::Failure;

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

/// Tells the user something that is no result. In one write, so that it stays whole among others' lines.
pub fn note(text: impl std::fmt::Display) {
    let _ = io::stderr().write_all(format!("portreeve: {text}\n").as_bytes());
}

/// A table without lines, as wide as the terminal at most.
pub fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width() {
        table.set_width(width);
    }
    if header.iter().any(|name| !name.is_empty()) {
        table.set_header(header);
    }
    table
}

/// The table as text.
pub fn render(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// The terminal's columns; where the output is none, those that COLUMNS asks for.
fn width() -> Option<u16> {
    let stdout = io::stdout();
    let asked = || std::env::var("COLUMNS").ok()?.parse().ok();
    if !stdout.is_terminal() {
        return asked();
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok();
    size.map(|size| size.ws_col).filter(|columns| *columns > 0).or_else(asked)
}
