//! The log: structured lines on standard error, or entries of the journal.
//!
//! While the broker is busy, lines are buffered in memory. They are written before the broker waits, before it ends, and
//! when the buffer is full enough. So a line costs no system call of its own while peers wait for replies, and an idle
//! broker buffers nothing. The broker never waits for the reader of the log: lines that do not fit in the buffer are
//! dropped and counted, and the count is logged as soon as there is room. Each peer has a share of the buffer, so that
//! lines that one peer causes do not displace those of others.

mod buffer;
mod format;
mod level;
mod origin;
mod sink;
mod subscriber;

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use buffer::{Buffer, Weight};
pub use format::Format;
use format::Style;
pub use level::{set_level, shows_debug};
pub use origin::{Origin, named, set_user_names};
use sink::Sink;
use subscriber::Lines;

use crate::failure::{Exit, Failure};

/// How long to wait for a slow reader at the end.
const FINAL_WAIT: Duration = Duration::from_secs(1);
/// How long to wait before the next attempt to write while the reader is slow: doubled as long as it does not read.
const RETRY: Duration = Duration::from_millis(2);
const MAX_RETRY: Duration = Duration::from_millis(100);

/// Unset until [`begin`].
static FORMAT: OnceLock<Format> = OnceLock::new();
static BUFFER: Mutex<Buffer> = Mutex::new(Buffer::new());
/// Notified when some lines could not be written.
static STALLED: Notify = Notify::const_new();

/// Whether the broker has started to serve.
static SERVES: AtomicBool = AtomicBool::new(false);

/// Records that the start has succeeded: from now on the broker serves.
pub fn started() {
    SERVES.store(true, Ordering::Relaxed);
}

fn buffer() -> MutexGuard<'static, Buffer> {
    BUFFER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of lines that were dropped because the reader was too slow.
pub fn dropped() -> u64 {
    buffer().dropped()
}

/// Calls a function; the lines that it logs are about the requests of this peer.
pub fn about<T>(origin: Origin, call: impl FnOnce() -> T) -> T {
    origin::set_during((origin, Weight::Notice), call)
}

/// As [`about`], for lines that record a change of state: the last to be dropped.
pub fn record<T>(origin: Origin, call: impl FnOnce() -> T) -> T {
    origin::set_during((origin, Weight::Record), call)
}

/// Whether the reader is slow, and a flood of further lines of this origin would be dropped.
pub fn is_crowded_by(origin: Origin) -> bool {
    buffer().is_crowded_by(origin)
}

/// Waits until the reader has read enough of a peer's lines that the next ones will be stored, but no longer than
/// `limit`. The broker serves other peers meanwhile.
pub async fn wait_for_room(origin: Origin, limit: Duration) {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    while is_crowded_by(origin) && Instant::now() < end {
        // The lines are written while the broker is idle.
        tokio::time::sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
        pause *= 2;
    }
}

/// Writes the buffered lines without blocking.
pub fn flush() {
    let dropped = {
        let mut buffer = buffer();
        buffer.write();
        buffer.dropped_since_last()
    };
    if !dropped.is_empty() {
        for (peer, lines) in dropped {
            tracing::warn!(peer = %named(peer), lines, "log lines were dropped: the reader of the log was too slow");
        }
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
        let mut pause = RETRY;
        loop {
            let before = buffer().written();
            tokio::time::sleep(pause).await;
            flush();
            let buffer = buffer();
            if !buffer.is_stalled() {
                break;
            }
            pause = if buffer.written() > before { RETRY } else { (pause * 2).min(MAX_RETRY) };
        }
    }
}

/// Writes the buffered lines before the process ends, for a limited time.
pub fn finish() {
    flush();
    buffer().finish(FINAL_WAIT);
}

/// Logs why the program does not start, or ends: one line per cause. Writes the buffer.
pub fn fatal(lines: &[String]) {
    for line in lines {
        match FORMAT.get() {
            None => {
                let _ = writeln!(io::stderr(), "portreeved: {line}"); // standard error may be closed
            }
            Some(Format::Text) => {
                let line = format!("portreeved: {line}\n");
                buffer().push(Origin::Broker, Weight::Record, line.as_bytes());
            }
            Some(Format::Json | Format::Journald) if SERVES.load(Ordering::Relaxed) => {
                tracing::error!("exiting after an error: {line}");
            }
            Some(Format::Json | Format::Journald) => tracing::error!("cannot start: {line}"),
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
    let style = Style { time: !sink::stderr_is_journal(), colour };
    let _ = tracing::subscriber::set_global_default(Lines { format, style }); // called once
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("exiting because of a bug in portreeved: {panic}");
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
