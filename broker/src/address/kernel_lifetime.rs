//! The lifetimes in the kernel of addresses that their holder renews together: the fence ends their leases, and the kernel removes
//! an address that nobody manages any more.
//!
//! Promises: the lifetimes are so long that they need not be refreshed at each renewal. Refreshing takes at most a tenth of a
//! processor, and no request waits long for it. While a lease is renewed, the kernel does not remove its address, unless it cannot
//! be told in time.

use std::cell::Cell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Addresses;
use super::lease::Lease;
use super::lease_table::LeaseTable;
use crate::holder::Holder;
use crate::sys::BootTime;
use crate::sys::rtnl::Placement;

/// These, multiplied by the square of the number of addresses, are the lifetimes of many: 60 times what it takes the kernel to
/// refresh all of them. Measured on Linux 6.18: 0.018 µs for IPv4 and 0.55 µs for IPv6, multiplied by the square.
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
        let (lengths, now) = (renews_all.then(|| Lengths::of(&table)), BootTime::now());
        let with_deadline = |placement: &Placement| {
            let mut kernel_deadline = deadline;
            if let Some(lease) = table.get_mut(placement.address) {
                if let (Some(deadline), Some(lengths)) = (deadline, &lengths) {
                    kernel_deadline = Some(now.saturating_add(lengths.of_lease(lease)).max(deadline));
                }
                lease.kernel_deadline = kernel_deadline;
            }
            (*placement, kernel_deadline)
        };
        placements.iter().map(with_deadline).collect()
    }

    /// Refreshes lifetimes that have lost a third of their length, for a short time. Returns when to call it again, if more is
    /// to be done.
    pub(super) fn refresh_kernel_lifetimes(&self) -> Option<Instant> {
        let begun = Instant::now();
        let due = self.due_lifetimes();
        let is_urgent = due.first().is_some_and(|first| first.is_urgent);
        let pause_until = self.kernel_lifetimes.pause_until.get();
        if let Some(pause_until) = pause_until.filter(|until| *until > begun && !is_urgent && !due.is_empty())
        {
            return Some(pause_until);
        }
        let mut rest = due.chunks(CHUNK);
        for chunk in rest.by_ref() {
            // The kernel would create an address that another program has removed.
            self.reconciler.receive_all();
            self.refresh(chunk);
            if begun.elapsed() >= SLICE {
                break;
            }
        }
        let pause = begun.elapsed().saturating_mul(9);
        let again = rest.next().map(|_| Instant::now() + pause);
        self.kernel_lifetimes.pause_until.set(again);
        again.map(|again| if is_urgent { Instant::now() } else { again })
    }

    fn refresh(&self, due: &[Due]) {
        let now = BootTime::now();
        let held: Vec<(Placement, Option<BootTime>)> = {
            let table = self.table.borrow();
            let is_held = |due: &&Due| {
                table
                    .get(due.placement.address)
                    .is_some_and(|lease| lease.is_held() && lease.placement == due.placement)
            };
            let held = due.iter().filter(is_held);
            held.map(|due| (due.placement, Some(now.saturating_add(due.length)))).collect()
        };
        let outcomes = self.host.set_kernel_lifetimes(&held);
        let mut table = self.table.borrow_mut();
        for ((placement, kernel_deadline), outcome) in held.into_iter().zip(outcomes) {
            match (outcome, table.get_mut(placement.address)) {
                (Ok(()), Some(lease)) => lease.kernel_deadline = kernel_deadline,
                (Ok(()), None) => {}
                (Err(errno), _) => {
                    tracing::warn!(address = %placement.address, error = %errno, "cannot refresh the lifetime of an address");
                }
            }
        }
    }

    /// The addresses whose lifetime is to be refreshed; those first that the kernel would remove first.
    fn due_lifetimes(&self) -> Vec<Due> {
        let table = self.table.borrow();
        if !table.iter().any(|lease| lease.renewed_with_all) {
            return Vec::new();
        }
        let (lengths, now) = (Lengths::of(&table), BootTime::now());
        let is_refreshed =
            |lease: &&Lease| lease.renewed_with_all && lease.is_held() && !lease.is_expired(now);
        let mut due: Vec<Due> = table
            .iter()
            .filter(is_refreshed)
            .filter_map(|lease| {
                let (kernel_deadline, deadline) = (lease.kernel_deadline?, lease.deadline?);
                let length = lengths.of_lease(lease);
                let rest = now.duration_until(kernel_deadline);
                let is_urgent = kernel_deadline < deadline.saturating_add(MARGIN);
                let due = Due { placement: lease.placement, length, kernel_deadline, is_urgent };
                (is_urgent || rest < length / 3 * 2).then_some(due)
            })
            .collect();
        due.sort_unstable_by_key(|due| due.kernel_deadline);
        due
    }
}

/// An address whose lifetime is to be refreshed.
struct Due {
    placement: Placement,
    /// The new lifetime.
    length: Duration,
    kernel_deadline: BootTime,
    /// Whether the kernel would remove the address before its lease ends.
    is_urgent: bool,
}
