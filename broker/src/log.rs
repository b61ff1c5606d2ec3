//! The log: structured lines on standard error, for people.
//!
//! While the broker is busy, lines wait in memory; they are written before it waits for anything, before it ends, and
//! when many have come together. So a line costs no system call of its own while peers wait for answers, and none is
//! ever held back from a broker at rest.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::filter::LevelFilter;

/// How many bytes may wait.
const MOST: usize = 32 * 1024;

static WAITING: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Line;

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waiting = waiting();
        waiting.extend_from_slice(bytes);
        if waiting.len() > MOST {
            write_out(&mut waiting);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn waiting() -> MutexGuard<'static, Vec<u8>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_out(waiting: &mut Vec<u8>) {
    if !waiting.is_empty() {
        let _nowhere_to_say_so = io::stderr().write_all(waiting);
        waiting.clear();
    }
}

/// How many lines were lost because nobody read them.
pub fn lost() -> u64 {
    0
}

/// Writes what waits.
pub fn flush() {
    write_out(&mut waiting());
}

/// Begins to log. Colour only on a terminal; the time only where nobody else writes it.
pub fn begin() {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let colour = io::IsTerminal::is_terminal(&io::stderr());
    let lines =
        tracing_subscriber::fmt().with_writer(|| Line).with_ansi(colour).with_max_level(LevelFilter::INFO);
    if journal {
        lines.without_time().init();
    } else {
        lines.init();
    }
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        flush();
        report(panic);
    }));
}
