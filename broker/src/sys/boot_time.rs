//! The clock of leases, CLOCK_BOOTTIME: it continues while the host is suspended, as the clocks of other hosts do.

use std::time::Duration;

/// A reading of CLOCK_BOOTTIME, since boot or an offset of the time namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Reads the clock. See clock_gettime(2); Linux 2.6.39, so it cannot fail.
    ///
    /// # Capabilities
    /// None.
    pub fn now() -> Self {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from);
        Self(now.unwrap_or_default())
    }

    /// In nanoseconds, for another process on this host.
    pub fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// From nanoseconds that another process on this host sent.
    pub fn from_nanos(nanoseconds: u64) -> Self {
        Self(Duration::from_nanos(nanoseconds))
    }

    /// The time `duration` later.
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// The time `duration` earlier.
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }

    /// The time from this reading until a later one; zero for an earlier one.
    pub fn duration_until(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}
