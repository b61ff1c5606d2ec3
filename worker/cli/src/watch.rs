//! A page that is shown again and again: in place on a terminal, one after the other elsewhere.

use std::io::{self, IsTerminal as _, Write as _};

use crate::failure::Failure;
use crate::output::size;

/// Shows a page. Each line ends what stood there before, and what does not fit the terminal's lines is left out.
pub fn show(page: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = if io::stdout().is_terminal() {
        let (_, lines) = size().unwrap_or((80, 24));
        let most = usize::from(lines).saturating_sub(1);
        let mut shown: Vec<&str> = page.lines().collect();
        let left_out = shown.len().saturating_sub(most);
        if left_out > 0 {
            shown.truncate(most.saturating_sub(1));
        }
        let more = if left_out > 0 { format!("… {} more lines", left_out + 1) } else { String::new() };
        let text: String = shown.iter().map(|line| format!("{line}\x1b[K\n")).collect();
        write!(out, "\x1b[H{text}{more}\x1b[J")
    } else {
        writeln!(out, "{page}\n")
    };
    written.and_then(|()| out.flush()).map_err(Failure::Output)
}
