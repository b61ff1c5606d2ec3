//! A counter for metrics. The broker serves in one thread, so a plain cell is enough.

use std::cell::Cell;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Adds one.
    pub fn up(&self) {
        self.add(1);
    }

    /// Adds several; the counter stops at its largest value.
    pub fn add(&self, count: usize) {
        self.0.set(self.0.get().saturating_add(count as u64));
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}
