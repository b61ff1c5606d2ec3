//! The kernel's limit of descriptors in flight, and how to wait while it is exceeded.
//!
//! For each user of the host the kernel counts the descriptors that were sent over Unix sockets and not received. While
//! user 0 has more than RLIMIT_NOFILE of the sender, a process without CAP_SYS_RESOURCE and CAP_SYS_ADMIN, such as a confined
//! broker, cannot send any: ETOOMANYREFS, see unix(7). Any process of user 0 can cause that, in any namespace, and no event
//! reports its end.
//!
//! Promises: the error ends nothing; its sender tries again after a pause. The log has one line when the state lasts and one
//! when it ends, however many senders wait.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// After this time the state is reported.
const LASTING: Duration = Duration::from_secs(1);
/// The shortest time between two reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// After this time without an attempt nothing is known about the state.
const STALE: Duration = Duration::from_secs(10);
/// The pause after the first attempt; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_millis(40);

/// What the broker knows about the limit.
#[derive(Debug, Default)]
pub struct InFlightLimit {
    /// The first and the last attempt that failed, since the last one that succeeded.
    failed: Cell<Option<(Instant, Instant)>>,
    /// When the state was last reported.
    reported: Cell<Option<Instant>>,
    /// Whether the present state was reported, so that its end is too.
    report_end: Cell<bool>,
}

impl InFlightLimit {
    /// Records that the kernel refused to send descriptors.
    pub fn refused(&self) {
        let now = Instant::now();
        let current = self.failed.get().filter(|(_, last)| now.duration_since(*last) < STALE);
        let first = current.map_or(now, |(first, _)| first);
        self.failed.set(Some((first, now)));
        let is_due = self.reported.get().is_none_or(|last| now.duration_since(last) >= REPORT_INTERVAL);
        if now.duration_since(first) >= LASTING && is_due && !self.report_end.replace(true) {
            self.reported.set(Some(now));
            tracing::warn!(
                "user 0 has too many descriptors in flight on this host (ETOOMANYREFS): sockets for peers, workers and the \
                 service manager wait; find the program of root that leaves descriptors unread, see unix(7)"
            );
        }
    }

    /// Records that descriptors were sent.
    pub fn sent(&self) {
        let Some((first, _)) = self.failed.take() else { return };
        if self.report_end.take() {
            let seconds = first.elapsed().as_secs();
            tracing::info!(
                seconds,
                "user 0 no longer has too many descriptors in flight: sockets are sent again"
            );
        }
    }

    /// Whether the state lasts.
    pub fn is_lasting(&self) -> bool {
        self.failed.get().is_some_and(|(first, last)| last.elapsed() < STALE && first.elapsed() >= LASTING)
    }
}

/// The pauses between attempts to send descriptors.
#[derive(Debug, Default)]
pub struct Pauses {
    last: Duration,
}

impl Pauses {
    /// Waits before the next attempt: each time twice as long, within limits.
    pub async fn next(&mut self) {
        self.last = (self.last * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
        tokio::time::sleep(self.last).await;
    }
}
