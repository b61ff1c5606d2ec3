//! When leases end, and how much time remains until then. Data only.

use std::time::Duration;

use crate::sys::BootTime;
use crate::sys::rtnl::Lifetime;

/// What the rest of a lease that was just granted may lack to the next whole second: the kernel's timers are coarser than this.
pub const ROUNDING: Duration = Duration::from_millis(50);

/// The end of a lease as a request gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    /// This long after the request is carried out; `None` for a permanent address.
    After(Lifetime),
    /// At this time, however late the request is carried out.
    At(BootTime),
}

impl LeaseEnd {
    /// The end of a lease that begins now; `None` for a permanent address.
    pub fn deadline(self, now: BootTime) -> Option<BootTime> {
        match self {
            LeaseEnd::After(lifetime) => {
                lifetime.map(|seconds| now.saturating_add(Duration::from_secs(seconds.into())))
            }
            LeaseEnd::At(end) => Some(end),
        }
    }

    /// The length of a lease that begins now, for later renewals that name none: in whole seconds, rounded up.
    pub fn lifetime(self, now: BootTime) -> Lifetime {
        match self {
            LeaseEnd::After(lifetime) => lifetime,
            LeaseEnd::At(end) => {
                let rest = now.duration_until(end);
                let seconds = rest.as_secs() + u64::from(rest.subsec_nanos() > 0);
                Some(u32::try_from(seconds).unwrap_or(u32::MAX - 1))
            }
        }
    }
}

/// The time until a deadline as the kernel takes it: in whole seconds, rounded down, because the kernel must not keep an address
/// longer than the lease lasts, and at least 1, the shortest lifetime. What lacks no more than `rounding` to the next second is
/// rounded up.
pub fn kernel_seconds(deadline: Option<BootTime>, now: BootTime, rounding: Duration) -> Lifetime {
    let seconds = now.duration_until(deadline?).saturating_add(rounding).as_secs();
    Some(u32::try_from(seconds).unwrap_or(u32::MAX - 1).max(1))
}
