//! The level of the log. A reload changes it.
//!
//! Promises: the audit lines of changes and refusals are written at every level.

use std::sync::{PoisonError, RwLock};

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, callsite};

use super::format::AUDIT;
use crate::config::LogLevel;

/// The level of all lines except audit lines.
static LEVEL: RwLock<LevelFilter> = RwLock::new(LevelFilter::INFO);

/// Sets the level.
pub fn set_level(level: LogLevel) {
    *LEVEL.write().unwrap_or_else(PoisonError::into_inner) = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    // `tracing` asks once which lines are written, and then remembers it.
    callsite::rebuild_interest_cache();
}

fn level() -> LevelFilter {
    *LEVEL.read().unwrap_or_else(PoisonError::into_inner)
}

/// The highest level of all lines.
pub(super) fn highest() -> LevelFilter {
    level().max(LevelFilter::INFO)
}

/// Whether lines of this kind are written.
pub(super) fn is_written(line: &Metadata<'_>) -> bool {
    *line.level() <= if line.target() == AUDIT { highest() } else { level() }
}

/// Whether the log shows lines of the level debug.
pub fn shows_debug() -> bool {
    tracing::enabled!(Level::DEBUG)
}
