//! Spans of time in which something may fail that otherwise may not.

use std::sync::atomic::{AtomicU64, Ordering};

/// Odd while the trouble lasts.
#[derive(Default)]
pub struct Trouble(AtomicU64);

/// What was seen of it at one moment.
#[derive(Clone, Copy)]
pub struct Moment(u64);

impl Trouble {
    /// It begins, unless it has.
    pub fn begin(&self) {
        self.0.fetch_or(1, Ordering::SeqCst);
    }

    /// It is over, if it had begun.
    pub fn end(&self) {
        let _none_began = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| (count % 2 == 1).then_some(count + 1));
    }

    /// Now.
    pub fn now(&self) -> Moment {
        Moment(self.0.load(Ordering::SeqCst))
    }

    /// Whether there was any since that moment.
    pub fn since(&self, then: Moment) -> bool {
        then.0 % 2 == 1 || self.now().0 != then.0
    }
}
