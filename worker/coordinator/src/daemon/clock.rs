//! The clock of the decisions: CLOCK_BOOTTIME, which counts suspension too and which no clock step changes.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::core::time::BootTime;

/// The longest time that a wait counts on another clock: tokio's does not count suspension.
const SLICE: Duration = Duration::from_secs(1);

/// Now, by CLOCK_BOOTTIME of this process's time namespace. See clock_gettime(2) and time_namespaces(7).
pub fn now() -> BootTime {
    // The clock exists since Linux 2.6.39, and the call has no other error.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    BootTime(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Waits until an instant.
pub async fn sleep_until(instant: BootTime) {
    loop {
        let left = instant.since(now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(SLICE)).await;
    }
}
