//! Periods in which a failure is expected that would otherwise be a violation.

use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of disruption: a counter that is odd while one lasts.
#[derive(Default)]
pub struct Disruption(AtomicU64);

/// The counter's value at some time.
#[derive(Clone, Copy)]
pub struct Mark(u64);

impl Disruption {
    /// Begins a disruption, unless one lasts already.
    pub fn begin(&self) {
        self.0.fetch_or(1, Ordering::SeqCst);
    }

    /// Ends the disruption, if one lasts.
    pub fn end(&self) {
        let _ = self // fails if none lasts
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| (count % 2 == 1).then_some(count + 1));
    }

    /// The current value.
    pub fn mark(&self) -> Mark {
        Mark(self.0.load(Ordering::SeqCst))
    }

    /// Whether a disruption lasted at that time or has begun since.
    pub fn occurred_since(&self, then: Mark) -> bool {
        then.0 % 2 == 1 || self.mark().0 != then.0
    }
}
