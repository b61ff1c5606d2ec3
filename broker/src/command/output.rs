//! Output: results on standard output, diagnostics on standard error; as text or as one JSON document.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::{Config, Report, Spanned, Style};
use crate::failure::Exit;

/// Prints a text to standard output.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush()); // the reader may have closed the pipe
}

/// Prints one JSON document.
pub(super) fn print_json(value: &Value) {
    // JSON does not escape DEL and the C1 control characters, but terminals obey them.
    let mut text = String::new();
    for c in format!("{value:#}\n").chars() {
        match c {
            '\u{7f}'..='\u{9f}' => text += &format!("\\u{:04x}", u32::from(c)),
            other => text.push(other),
        }
    }
    print(&text);
}

/// Prints diagnostics, each with its line, to standard error.
pub(super) fn show(report: &Report) {
    let text = report.render(style());
    let mut out = io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush()); // the reader may have closed the pipe
}

/// Colour on a terminal that supports it, unless NO_COLOR is set (no-color.org).
fn style() -> Style {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let dumb = set("TERM").is_none_or(|term| term == "dumb");
    match io::stderr().is_terminal() && !dumb && set("NO_COLOR").is_none() {
        true => Style::Colour,
        false => Style::Plain,
    }
}

/// The exit code for a report; `ok`: the configuration is accepted.
pub(super) fn exit(report: &Report, ok: bool) -> ExitCode {
    match report {
        _ if report.is_unread() => ExitCode::from(Exit::NoInput as u8),
        _ if !ok => ExitCode::from(Exit::Config as u8),
        _ => ExitCode::SUCCESS,
    }
}

/// The diagnostics about a file as JSON; `ok`: the configuration is accepted.
pub(super) fn findings(file: &str, report: &Report, ok: bool, config: Option<&Config>) -> Value {
    let skipped = config.map_or(&[][..], |config| &config.skipped);
    let skipped: Vec<Value> =
        config.into_iter().flat_map(|config| skipped.iter().map(|name| place(config, name))).collect();
    json!({
        "file": file,
        "ok": ok,
        "diagnostics": report.diagnostics(),
        "omitted": report.omitted(),
        "skipped": skipped,
    })
}

fn place(config: &Config, name: &Spanned<String>) -> Value {
    let place = config.sources().place(name.span);
    json!({ "name": name.value, "file": place.file, "line": place.line, "column": place.column })
}
