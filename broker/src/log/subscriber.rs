//! Where the lines of `tracing` arrive: each is formatted and buffered.

use std::sync::{Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::format::{self, Format, Style};
use super::{buffer, level, origin};

/// The memory of the last line, for the next one.
static LINE: Mutex<String> = Mutex::new(String::new());
/// The largest memory that is kept.
const MAX_KEPT: usize = 64 * 1024;

/// Writes each event as a line into the buffer. The broker has no spans.
pub struct Lines {
    pub format: Format,
    pub style: Style,
}

impl Subscriber for Lines {
    fn enabled(&self, line: &Metadata<'_>) -> bool {
        level::is_written(line)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(level::highest())
    }

    fn event(&self, event: &Event<'_>) {
        // Taken, because a value could log while it is formatted.
        let mut line = std::mem::take(&mut *LINE.lock().unwrap_or_else(PoisonError::into_inner));
        match self.format {
            Format::Text => format::text(&mut line, self.style, event),
            Format::Json => format::json(&mut line, event),
            Format::Journald => format::journald(&mut line, event),
        }
        let (origin, weight) = origin::current();
        buffer().push(origin, weight, line.as_bytes());
        if line.capacity() <= MAX_KEPT {
            line.clear();
            *LINE.lock().unwrap_or_else(PoisonError::into_inner) = line;
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
