//! The lifetimes in the kernel of addresses that their holder renews together: the fence ends their leases, and the kernel removes
//! an address that nobody manages any more.
//!
//! Promises: while a lease is renewed, the kernel does not remove its address before the lease ends. Refreshing the lifetimes of
//! all addresses takes at most a tenth of a processor, and no request waits long for it: the more addresses there are, the longer
//! are their lifetimes.

use std::cell::Cell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Addresses;
use super::lease::Lease;
use super::lease_table::LeaseTable;
use crate::holder::Holder;
use crate::sys::BootTime;
use crate::sys::rtnl::Placement;

/// How long the lifetimes are, for each square of the number of addresses: 60 times what it takes the kernel to refresh all of
/// them, which grows with the square. Measured on Linux 6.18: 0.018 µs for IPv4, 0.55 µs for IPv6.
const IPV4_UNIT: Duration = Duration::from_nanos(1_080);
const IPV6_UNIT: Duration = Duration::from_nanos(33_000);
/// The time to spend at once.
const SLICE: Duration = Duration::from_millis(10);
/// How many lifetimes are refreshed before the time is looked at.
const CHUNK: usize = 4;
/// How much earlier than the end of its lease the kernel could remove an address, because it counts whole seconds.
const MARGIN: Duration = Duration::from_secs(2);

/// When lifetimes are refreshed.
#[derive(Debug, Default)]
pub(super) struct KernelLifetimes {
    pause_until: Cell<Option<Instant>>,
}

/// The lifetimes for the current number of addresses.
struct Lengths {
    ipv4: Duration,
    ipv6: Duration,
}

impl Lengths {
    fn of(table: &LeaseTable) -> Self {
        let (mut ipv4, mut ipv6) = (0_u32, 0_u32);
        table.iter().for_each(|lease| match lease.placement.address {
            IpAddr::V4(_) => ipv4 += 1,
            IpAddr::V6(_) => ipv6 += 1,
        });
        let length = |unit: Duration, count: u32| unit.saturating_mul(count).saturating_mul(count);
        Self { ipv4: length(IPV4_UNIT, ipv4), ipv6: length(IPV6_UNIT, ipv6) }
    }

    /// The lifetime of one address: longer than its lease, so that it need not be refreshed at each renewal.
    fn of_lease(&self, lease: &Lease) -> Duration {
        let length = if lease.placement.address.is_ipv4() { self.ipv4 } else { self.ipv6 };
        let lease_length = Duration::from_secs(lease.lifetime.unwrap_or_default().into());
        length.max(lease_length + lease_length / 2 + MARGIN)
    }
}

impl Addresses {
    /// The times at which the kernel is to remove new addresses, which are entered in the lease table.
    pub(super) fn with_kernel_deadlines(
        &self,
        placements: &[Placement],
        holder: Holder,
        deadline: Option<BootTime>,
    ) -> Vec<(Placement, Option<BootTime>)> {
        let mut table = self.table.borrow_mut();
        let renews_all = table.iter().any(|lease| lease.holder == holder && lease.renewed_with_all);
        let (lengths, now) = (Lengths::of(&table), BootTime::now());
        let with_deadline = |placement: &Placement| {
            let lease = table.get_mut(placement.address);
            let kernel_deadline = match (lease, deadline) {
                (Some(lease), Some(deadline)) if renews_all => {
                    let longer = now.saturating_add(lengths.of_lease(lease));
                    lease.kernel_deadline = Some(longer.max(deadline));
                    lease.kernel_deadline
                }
                _ => deadline,
            };
            (*placement, kernel_deadline)
        };
        placements.iter().map(with_deadline).collect()
    }

    /// Refreshes lifetimes that have lost a third of their length, for a short time. Returns when to call it again, if more is
    /// to be done.
    pub(super) fn refresh_kernel_lifetimes(&self) -> Option<Instant> {
        let begun = Instant::now();
        if let Some(pause_until) = self.kernel_lifetimes.pause_until.get().filter(|until| *until > begun) {
            return Some(pause_until);
        }
        let due = self.due_lifetimes();
        let mut rest = due.as_slice();
        while let Some((chunk, after)) =
            rest.split_at_checked(CHUNK.min(rest.len())).filter(|_| !rest.is_empty())
        {
            let now = BootTime::now();
            let lengthened: Vec<(Placement, Option<BootTime>)> = chunk
                .iter()
                .map(|(placement, length)| (*placement, Some(now.saturating_add(*length))))
                .collect();
            let outcomes = self.host.set_kernel_lifetimes(&lengthened);
            let mut table = self.table.borrow_mut();
            for ((placement, kernel_deadline), outcome) in lengthened.into_iter().zip(outcomes) {
                match outcome {
                    Ok(()) => {
                        let lease = table.get_mut(placement.address);
                        lease.into_iter().for_each(|lease| lease.kernel_deadline = kernel_deadline);
                    }
                    Err(errno) => {
                        tracing::warn!(address = %placement.address, %errno, "cannot refresh the lifetime of an address");
                    }
                }
            }
            rest = after;
            if begun.elapsed() >= SLICE {
                break;
            }
        }
        let pause = begun.elapsed().saturating_mul(9);
        let again = (!rest.is_empty()).then(|| Instant::now() + pause);
        self.kernel_lifetimes.pause_until.set(again);
        again
    }

    /// The addresses whose lifetime is to be refreshed, with the new one; those first that the kernel would remove first.
    fn due_lifetimes(&self) -> Vec<(Placement, Duration)> {
        let table = self.table.borrow();
        if !table.iter().any(|lease| lease.renewed_with_all) {
            return Vec::new();
        }
        let (lengths, now) = (Lengths::of(&table), BootTime::now());
        let mut due: Vec<(BootTime, Placement, Duration)> = table
            .iter()
            .filter(|lease| lease.renewed_with_all && lease.is_held())
            .filter_map(|lease| {
                let (kernel_deadline, deadline) = (lease.kernel_deadline?, lease.deadline?);
                let length = lengths.of_lease(lease);
                let needed = now.duration_until(deadline).saturating_add(MARGIN).max(length / 3 * 2);
                let is_due = now.duration_until(kernel_deadline) < needed && !lease.is_expired(now);
                is_due.then_some((kernel_deadline, lease.placement, length))
            })
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(_, placement, length)| (placement, length)).collect()
    }
}
