//! The log: structured lines on standard error, for people or programs, or entries of the journal.
//!
//! While the broker is busy, lines wait in memory; they are written before it waits for anything, before it ends, and
//! when many have come together. So a line costs no system call of its own while peers wait for answers, and none is
//! ever held back from a broker at rest. Nobody waits for a reader of the log: lines that find no room are counted, and
//! the count is told once there is room again.

mod format;
mod sink;
mod waiting;

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing_subscriber::filter::LevelFilter;

pub use format::Format;
use sink::Sink;
use waiting::Waiting;

use crate::failure::{Exit, Failure};

/// How long the last lines may wait for a reader.
const AT_THE_END: Duration = Duration::from_secs(1);
/// How often a reader that does not keep up is looked after.
const AGAIN: Duration = Duration::from_millis(100);

/// Unset until the log begins.
static FORMAT: OnceLock<Format> = OnceLock::new();
static WAITING: Mutex<Waiting> = Mutex::new(Waiting::new());
/// Some lines could not be written.
static STALLED: Notify = Notify::const_new();

struct Line;

impl Write for Line {
    /// One line, or one entry of the journal.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        waiting().push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn waiting() -> MutexGuard<'static, Waiting> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many lines were lost because nobody read them.
pub fn lost() -> u64 {
    waiting().lost()
}

/// Writes what waits, as far as there is room.
pub fn flush() {
    let missed = {
        let mut waiting = waiting();
        waiting.write();
        waiting.missed()
    };
    if missed > 0 {
        tracing::warn!(lines = missed, "lines of this log were lost: nobody read them");
        waiting().write();
    }
    if waiting().is_stalled() {
        STALLED.notify_one();
    }
}

/// Writes what a reader made no room for, as soon as it has.
pub async fn look_after() -> Infallible {
    loop {
        STALLED.notified().await;
        tokio::time::sleep(AGAIN).await;
        flush();
    }
}

/// Writes what waits before the process ends; a reader that does not read misses it.
pub fn finish() {
    flush();
    waiting().finish(AT_THE_END);
}

/// Tells why the program ends, a line each, and ends the log.
pub fn tell(lines: &[String]) {
    for line in lines {
        match FORMAT.get() {
            None => {
                let _nobody_may_be_there_to_read_it = writeln!(io::stderr(), "portreeved: {line}");
            }
            Some(Format::Text) => waiting().push(format!("portreeved: {line}\n").as_bytes()),
            Some(Format::Json | Format::Journald) => tracing::error!(why = line, "portreeved ends"),
        }
    }
    finish();
}

/// Begins to log, in the form that is asked for or suits where the log goes. Nothing may be opened later, so this comes
/// before the broker confines itself.
///
/// # Errors
/// The journal was asked for and there is none.
pub fn begin(asked: Option<Format>) -> Result<(), Failure> {
    let journal = match asked {
        Some(Format::Journald) => Some(Sink::journal().map_err(|error| no_journal(&error))?),
        // Standard error is the journal's already; its own protocol carries the fields too.
        None if sink::stderr_is_journal() => Sink::journal().ok(),
        _ => None,
    };
    let format = asked.unwrap_or(if journal.is_some() { Format::Journald } else { Format::Text });
    let colour = format == Format::Text && io::IsTerminal::is_terminal(&io::stderr());
    let _it_begins_once = FORMAT.set(format);
    waiting().go_to(journal.unwrap_or_else(Sink::stderr));
    let lines = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_writer(|| Line);
    match format {
        Format::Text if sink::stderr_is_journal() => lines.without_time().with_ansi(false).init(),
        Format::Text => lines.with_ansi(colour).init(),
        Format::Json => lines.event_format(format::Json).init(),
        Format::Journald => lines.event_format(format::Journald).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(why = panic.to_string(), "the broker ends: this is a mistake in it");
        finish();
    }));
    Ok(())
}

fn no_journal(error: &io::Error) -> Failure {
    Failure::new(
        Exit::Unavailable,
        "log",
        format_args!("the journal cannot be reached at {}: {error}", sink::JOURNAL),
        "start systemd-journald, or use another --log-format",
    )
}
