//! The log: structured lines on standard error, or entries of the journal.
//!
//! While the broker is busy, lines are buffered in memory. They are written before the broker waits, before it ends, and
//! when the buffer is full enough. So a line costs no system call of its own while peers wait for replies, and an idle
//! broker buffers nothing. The broker never waits for the reader of the log: lines that do not fit in the buffer are
//! dropped and counted, and the count is logged as soon as there is room.

mod buffer;
mod format;
mod sink;

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing_subscriber::filter::LevelFilter;

use buffer::Buffer;
pub use format::Format;
use sink::Sink;

use crate::failure::{Exit, Failure};

/// How long to wait for a slow reader at the end.
const FINAL_WAIT: Duration = Duration::from_secs(1);
/// How often to retry while the reader is slow.
const RETRY: Duration = Duration::from_millis(100);

/// Unset until [`begin`].
static FORMAT: OnceLock<Format> = OnceLock::new();
static BUFFER: Mutex<Buffer> = Mutex::new(Buffer::new());
/// Notified when some lines could not be written.
static STALLED: Notify = Notify::const_new();

struct Line;

impl Write for Line {
    /// Writes one line or journal entry into the buffer.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        buffer().push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn buffer() -> MutexGuard<'static, Buffer> {
    BUFFER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of lines that were dropped because the reader was too slow.
pub fn dropped() -> u64 {
    buffer().dropped()
}

/// Writes the buffered lines without blocking.
pub fn flush() {
    let dropped = {
        let mut buffer = buffer();
        buffer.write();
        buffer.dropped_since_last()
    };
    if dropped > 0 {
        tracing::warn!(lines = dropped, "log lines were dropped: the reader of the log was too slow");
        buffer().write();
    }
    if buffer().is_stalled() {
        STALLED.notify_one();
    }
}

/// Writes buffered lines as soon as a slow reader has made room.
pub async fn retry_loop() -> Infallible {
    loop {
        STALLED.notified().await;
        tokio::time::sleep(RETRY).await;
        flush();
    }
}

/// Writes the buffered lines before the process ends, for a limited time.
pub fn finish() {
    flush();
    buffer().finish(FINAL_WAIT);
}

/// Logs why the program ends, one line per cause, and writes the buffer.
pub fn fatal(lines: &[String]) {
    for line in lines {
        match FORMAT.get() {
            None => {
                let _ = writeln!(io::stderr(), "portreeved: {line}"); // standard error may be closed
            }
            Some(Format::Text) => buffer().push(format!("portreeved: {line}\n").as_bytes()),
            Some(Format::Json | Format::Journald) => tracing::error!(reason = line, "portreeved ends"),
        }
    }
    finish();
}

/// Initializes the log in the requested format or in the default one for its destination. Must be called before the
/// broker confines itself: afterwards nothing can be opened.
///
/// # Errors
/// The journal was requested and cannot be reached.
pub fn begin(requested: Option<Format>) -> Result<(), Failure> {
    let journal = match requested {
        Some(Format::Journald) => Some(Sink::journal().map_err(|error| no_journal(&error))?),
        // Standard error is connected to the journal; its native protocol carries the fields too.
        None if sink::stderr_is_journal() => Sink::journal().ok(),
        _ => None,
    };
    let format = requested.unwrap_or(if journal.is_some() { Format::Journald } else { Format::Text });
    let colour = format == Format::Text && io::IsTerminal::is_terminal(&io::stderr());
    let _ = FORMAT.set(format); // called once
    buffer().set_sink(journal.unwrap_or_else(Sink::stderr));
    let lines = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_writer(|| Line);
    match format {
        Format::Text if sink::stderr_is_journal() => lines.without_time().with_ansi(false).init(),
        Format::Text => lines.with_ansi(colour).init(),
        Format::Json => lines.event_format(format::Json).init(),
        Format::Journald => lines.event_format(format::Journald).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(reason = panic.to_string(), "portreeved ends because of a bug in it");
        finish();
    }));
    Ok(())
}

fn no_journal(error: &io::Error) -> Failure {
    Failure::new(
        Exit::Unavailable,
        "log",
        format_args!("cannot connect to the journal at {}: {error}", sink::JOURNAL),
        "start systemd-journald, or use another --log-format",
    )
}
