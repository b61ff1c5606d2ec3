//! The level of the log. A reload changes it.
//!
//! Promises: the audit lines of changes and refusals are written at every level.

use std::sync::OnceLock;

use tracing::Level;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::reload::{self, Handle};

use super::format::AUDIT;
use crate::config::LogLevel;

static FILTER: OnceLock<Handle<Targets, Registry>> = OnceLock::new();

/// The filter of all lines.
pub(super) fn filter() -> reload::Layer<Targets, Registry> {
    let (layer, handle) = reload::Layer::new(targets(LogLevel::default()));
    let _ = FILTER.set(handle); // called once
    layer
}

/// Sets the level.
pub fn set_level(level: LogLevel) {
    if let Some(filter) = FILTER.get() {
        let _ = filter.reload(targets(level)); // the layer is never dropped
    }
}

fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    Targets::new().with_default(level).with_target(AUDIT, level.max(LevelFilter::INFO))
}

/// Whether the log shows lines of the level debug.
pub fn shows_debug() -> bool {
    tracing::enabled!(Level::DEBUG)
}
