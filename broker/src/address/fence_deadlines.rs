//! Tells the fence until when addresses may pass.
//!
//! Promises: an address passes at most [`MAX_LATENESS`] and a tick of the kernel longer than its deadline, also if this process is
//! stopped while it tells the kernel. What cannot be told in time is blocked.

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use portreeve_protocol::Fault;

use super::fault;
use super::fence::Fence;
use super::host_addresses::HostAddresses;
use super::lease::MIN_LIFETIME;
use crate::holder::Holder;
use crate::sys::BootTime;
use crate::sys::nft::Element;
use crate::sys::rtnl::Placement;

/// How much later than its deadline an address may be blocked, besides the tick in which the kernel counts.
pub(super) const MAX_LATENESS: Duration = Duration::from_millis(5);
/// How often the fence is told a deadline if it was told too late, and how often it is asked.
const MAX_ATTEMPTS: usize = 10;

impl HostAddresses {
    /// Opens the fence for addresses that are about to be added, until their deadline.
    ///
    /// # Errors
    /// The kernel refused it; ENOENT if the fence is missing; ETIME if it cannot be told the deadline in time.
    pub fn open_fence(&self, placements: &[Placement], deadline: Option<BootTime>) -> Result<(), Errno> {
        let deadlines: Vec<_> = placements.iter().map(|placement| (placement.address, deadline)).collect();
        let opened = self.open_for(&deadlines);
        if opened.is_err() {
            self.remove_from_fence(placements.iter().map(|placement| placement.address));
        }
        opened
    }

    /// Lets addresses pass until their deadlines, whatever the fence had for them before.
    ///
    /// # Errors
    /// As [`HostAddresses::open_fence`].
    pub fn open_for(&self, deadlines: &[(IpAddr, Option<BootTime>)]) -> Result<(), Errno> {
        let open = |fence: &Fence, elements: &[Element]| fence.open_for(elements).map(|()| Vec::new());
        self.set_in_fence(deadlines, open).map(drop)
    }

    /// Gives the fence the time that remains until each deadline, as often as is needed so that no address passes longer. Returns
    /// the addresses that `set` returns: those whose time was over before.
    fn set_in_fence(
        &self,
        deadlines: &[(IpAddr, Option<BootTime>)],
        set: impl Fn(&Fence, &[Element]) -> Result<Vec<IpAddr>, Errno>,
    ) -> Result<Vec<IpAddr>, Errno> {
        let Some(fence) = self.fence() else { return Ok(Vec::new()) };
        let set = |now: BootTime| set(&fence, &elements_until(deadlines, now));
        let earliest = deadlines.iter().filter_map(|(_, deadline)| *deadline).min();
        let in_time = |ended: &Vec<IpAddr>| {
            // The kernel handles the last one last.
            let mut rest = deadlines.iter().rev().filter(|(address, _)| !ended.contains(address));
            match rest.find_map(|(address, deadline)| Some((*address, (*deadline)?))) {
                Some((address, deadline)) => ends_in_time(deadline, || fence.remaining(address)),
                None => Ok(true),
            }
        };
        let done = set_in_time(earliest, set, in_time);
        if done.as_ref().is_err_and(|errno| *errno == Errno::ETIME) {
            fence.close(&deadlines.iter().map(|(address, _)| *address).collect::<Vec<IpAddr>>())?;
        }
        done
    }

    /// Gives the fence the time that remains until the deadline of the addresses that a holder renews together, by `set`.
    ///
    /// # Errors
    /// Those of `set`; ETIME as [`HostAddresses::open_fence`].
    pub fn set_holder_in_fence(
        &self,
        holder: Holder,
        deadline: BootTime,
        set: impl Fn(&Fence, Holder, Duration) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let Some(fence) = self.fence() else { return Ok(()) };
        let set = |now: BootTime| set(&fence, holder, now.duration_until(deadline));
        let in_time = |(): &()| ends_in_time(deadline, || fence.holder_remaining(holder));
        let done = set_in_time(Some(deadline), set, in_time);
        if done == Err(Errno::ETIME) {
            fence.start_holder(holder, Duration::ZERO)?;
        }
        done
    }

    /// Renews addresses that have an element of their own in the fence, only there, until their deadlines. Returns the outcome of
    /// each.
    pub fn renew_in_fence(&self, placements: &[(Placement, Option<BootTime>)]) -> Vec<Result<(), Fault>> {
        let deadlines = of_addresses(placements);
        let renewed = self.set_in_fence(&deadlines, Fence::renew);
        let outcome = |(address, _): &(IpAddr, Option<BootTime>)| match &renewed {
            Ok(expired) if expired.contains(address) => Err(fault::lease_expired(*address)),
            Ok(_) => Ok(()),
            Err(errno) => Err(fault::address_failed("renewing the fence", *address, *errno)),
        };
        deadlines.iter().map(outcome).collect()
    }

    /// Lets addresses that have an element of their own in the fence pass while their holder renews.
    ///
    /// # Errors
    /// As [`Fence::join`].
    pub fn join_holder(&self, addresses: &[IpAddr], holder: Holder) -> Result<(), Errno> {
        self.fence().map_or(Ok(()), |fence| fence.join(addresses, holder))
    }

    /// Gives addresses that pass while their holder renews an element of their own in the fence, until their deadlines.
    ///
    /// # Errors
    /// As [`Fence::leave`].
    pub fn leave_holder(
        &self,
        deadlines: &[(Placement, Option<BootTime>)],
        holder: Holder,
    ) -> Result<(), Errno> {
        let Some(fence) = self.fence() else { return Ok(()) };
        let now = BootTime::now();
        fence.leave(&elements_until(&of_addresses(deadlines), now), holder)?;
        if now.duration_until(BootTime::now()) > MAX_LATENESS {
            self.renew_in_fence(deadlines); // those that have ended meanwhile fail, and are blocked
        }
        Ok(())
    }
}

fn of_addresses(placements: &[(Placement, Option<BootTime>)]) -> Vec<(IpAddr, Option<BootTime>)> {
    placements.iter().map(|(placement, deadline)| (placement.address, *deadline)).collect()
}

/// The elements of the fence that last from this time until the deadlines.
fn elements_until(deadlines: &[(IpAddr, Option<BootTime>)], from: BootTime) -> Vec<Element> {
    let rest = |deadline: &Option<BootTime>| deadline.map(|deadline| from.duration_until(deadline));
    deadlines.iter().map(|(address, deadline)| (*address, rest(deadline))).collect()
}

/// Tells the kernel the times that remain, by `set`, which gets the time from which to count. If that took long, asks by
/// `in_time` whether they end late. Then does it again and allows for the time that it takes, so that they may end a little early.
///
/// # Errors
/// Those of both; ETIME if the kernel was told too late each time, or the earliest deadline comes too soon.
fn set_in_time<R>(
    earliest: Option<BootTime>,
    set: impl Fn(BootTime) -> Result<R, Errno>,
    in_time: impl Fn(&R) -> Result<bool, Errno>,
) -> Result<R, Errno> {
    let mut allowance = Duration::ZERO;
    for _ in 0..MAX_ATTEMPTS {
        let begun = BootTime::now();
        let from = begun.saturating_add(allowance);
        if !allowance.is_zero()
            && earliest.is_some_and(|earliest| from.duration_until(earliest) < MIN_LIFETIME)
        {
            break;
        }
        let done = set(from)?;
        let took = begun.duration_until(BootTime::now());
        if took <= MAX_LATENESS || in_time(&done)? {
            return Ok(done);
        }
        allowance = allowance.max(took) + MAX_LATENESS;
    }
    Err(Errno::ETIME)
}

/// Whether an element of the fence ends by its deadline, and not long before, as the kernel reports.
fn ends_in_time(
    deadline: BootTime,
    remaining: impl Fn() -> Result<Option<Option<Duration>>, Errno>,
) -> Result<bool, Errno> {
    let latest = deadline.saturating_add(MAX_LATENESS);
    for _ in 0..MAX_ATTEMPTS {
        let before = BootTime::now();
        let Some(rest) = remaining()? else { return Ok(before >= deadline) };
        let Some(rest) = rest else { return Ok(false) };
        if BootTime::now().saturating_add(rest) <= latest {
            return Ok(true);
        }
        if before.saturating_add(rest) > latest {
            return Ok(false);
        }
        // The reply came too late to tell.
    }
    Ok(false)
}
