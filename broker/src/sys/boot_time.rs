//! The clock of leases: it goes on while the host sleeps, as other hosts' clocks do.

use std::time::Duration;

/// CLOCK_BOOTTIME, since an instant that means nothing. See clock_gettime(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// The time now.
    pub fn now() -> Self {
        // It cannot fail for a clock that the kernel has, and 2.6.39 had it.
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from);
        Self(now.unwrap_or_default())
    }

    /// As another process on this host is told it, in nanoseconds.
    pub fn told(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// As another process on this host told it.
    pub fn of(nanoseconds: u64) -> Self {
        Self(Duration::from_nanos(nanoseconds))
    }

    /// The time so much later.
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// The time so much earlier.
    pub fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }

    /// How long until then; zero when that is past.
    pub fn until(self, then: Self) -> Duration {
        then.0.saturating_sub(self.0)
    }
}
