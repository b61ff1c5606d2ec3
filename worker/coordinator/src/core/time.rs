//! Instants of this host.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An instant of CLOCK_BOOTTIME of one host in nanoseconds. It means nothing on another host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootTime(pub u64);

impl BootTime {
    /// The instant that much later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        BootTime(self.0.saturating_add(nanoseconds(duration)))
    }

    /// The instant that much earlier; the boot itself if there is none.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        BootTime(self.0.saturating_sub(nanoseconds(duration)))
    }

    /// The time since an earlier instant; zero since a later one.
    pub fn since(self, earlier: BootTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
