//! A page that is shown repeatedly: in place on a terminal, one after the other elsewhere.

use std::io::{self, IsTerminal as _, Write as _};

use crate::failure::Failure;
use crate::output::size;

/// Shows a page. On a terminal each line replaces the one before it, and lines that do not fit are omitted.
pub fn show(page: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = if io::stdout().is_terminal() {
        let (_, lines) = size().unwrap_or((80, 24));
        let max_lines = usize::from(lines).saturating_sub(1);
        let mut shown: Vec<&str> = page.lines().collect();
        let omitted = shown.len().saturating_sub(max_lines);
        if omitted > 0 {
            shown.truncate(max_lines.saturating_sub(1));
        }
        let more = if omitted > 0 { format!("… {} more lines", omitted + 1) } else { String::new() };
        let text: String = shown.iter().map(|line| format!("{line}\x1b[K\n")).collect();
        write!(out, "\x1b[H{text}{more}\x1b[J")
    } else {
        writeln!(out, "{page}\n")
    };
    written.and_then(|()| out.flush()).map_err(Failure::Output)
}
