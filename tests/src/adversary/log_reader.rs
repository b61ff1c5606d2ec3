//! A slow reader of the broker's log, and checks of its lines.

use std::io::{PipeReader, PipeWriter, Read as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How much it reads at once, and how long it then waits: 160 kB a second.
const CHUNK: usize = 4096;
const WAIT: Duration = Duration::from_millis(25);

/// The name of a field that hostile peers try to add to lines.
pub const FORGED: &str = "canary";

/// See the module.
pub struct LogReader {
    lines: Arc<Mutex<Vec<String>>>,
    writer: PipeWriter,
}

impl LogReader {
    /// Starts to read.
    pub fn start() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let shared = lines.clone();
        std::thread::spawn(move || read(reader, &shared));
        Self { lines, writer }
    }

    /// The end that a broker writes to.
    pub fn writer(&self) -> PipeWriter {
        self.writer.try_clone().unwrap()
    }

    /// How many lines there are so far.
    pub fn count(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    /// The lines from this one on.
    pub fn lines_from(&self, start: usize) -> Vec<String> {
        self.lines.lock().unwrap().get(start..).unwrap_or_default().to_vec()
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::thread::sleep(WAIT * 4);
            let lines = self.lines_from(0);
            eprintln!("the end of the broker's log:");
            lines.iter().skip(lines.len().saturating_sub(20)).for_each(|line| eprintln!("{line:.500}"));
        }
    }
}

fn read(mut reader: PipeReader, lines: &Mutex<Vec<String>>) {
    let (mut rest, mut chunk) = (Vec::new(), [0; CHUNK]);
    while let Ok(length @ 1..) = reader.read(&mut chunk) {
        rest.extend_from_slice(&chunk[..length]);
        let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let whole: Vec<u8> = rest.drain(..end).collect();
        let text = String::from_utf8_lossy(&whole);
        lines.lock().unwrap().extend(text.lines().map(str::to_owned));
        std::thread::sleep(WAIT);
    }
}

/// Whether a line has a field, or the beginning of a line, that a peer forged, or a character that changes how it is shown.
pub fn is_forged(line: &str) -> bool {
    let changes_display = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200b}'..='\u{200f}')
    };
    let field = format!("{FORGED}=");
    line.contains(changes_display)
        || line.starts_with(FORGED)
        || unquoted(line).split(char::is_whitespace).any(|word| word.starts_with(&field))
}

/// The line without its quoted values.
fn unquoted(line: &str) -> String {
    let (mut text, mut quoted, mut escaped) = (String::new(), false, false);
    for c in line.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            c if !quoted => text.push(c),
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_field_is_found_and_quoted_text_is_none() {
        for forged in [
            "INFO audit: done arguments=/run/a canary=1 session=3",
            "canary=1",
            "INFO \u{202e} x",
            "INFO client=\"a\" canary=2",
        ] {
            assert!(is_forged(forged), "{forged}");
        }
        for fine in [
            "INFO audit: done arguments=\"/run/a canary=1\" session=3",
            r#"client="a\" canary=1""#,
            "arguments=/run/a\\u{20}canary=1",
        ] {
            assert!(!is_forged(fine), "{fine}");
        }
    }
}
