//! CLOCK_MONOTONIC as a duration, for protocols that need its value: [`std::time::Instant`] does not give it.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The time of CLOCK_MONOTONIC. See clock_gettime(2).
///
/// # Capabilities
/// None.
pub fn monotonic() -> Duration {
    // CLOCK_MONOTONIC exists on every kernel, so the call cannot fail.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}
