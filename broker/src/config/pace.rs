//! How long the parsing of a configuration may occupy the thread before others get it.
//!
//! The broker has one thread. A configuration of several megabytes takes longer than a peer should wait, so the broker
//! parses it in slices.

use std::cell::Cell;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The longest time between two pauses of a [`Pace::shared`] computation, apart from one step of it.
const SLICE: Duration = Duration::from_millis(2);

/// Decides when a computation pauses.
#[derive(Debug)]
pub struct Pace {
    /// The end of the current slice; `None`: there are no pauses.
    slice_end: Cell<Option<Instant>>,
}

impl Pace {
    /// Pauses about every 2 ms, so that the runtime runs other tasks.
    pub fn shared() -> Self {
        Pace { slice_end: Cell::new(Some(Instant::now() + SLICE)) }
    }

    /// Never pauses: for a process that serves nobody meanwhile.
    fn exclusive() -> Self {
        Pace { slice_end: Cell::new(None) }
    }

    /// Lets other tasks run if the slice is over. To be called after each step.
    pub(super) async fn pause(&self) {
        if self.slice_end.get().is_some_and(|end| Instant::now() >= end) {
            tokio::task::yield_now().await;
            self.slice_end.set(Some(Instant::now() + SLICE));
        }
    }

    /// Drops values one by one: to free those of a large configuration takes as long as to parse some.
    pub(super) async fn drop_each<T>(&self, values: impl IntoIterator<Item = T>) {
        for value in values {
            drop(value);
            self.pause().await;
        }
    }
}

/// Runs a computation to its end without pauses.
pub fn without_pauses<T>(computation: impl AsyncFnOnce(&Pace) -> T) -> T {
    let pace = Pace::exclusive();
    let mut computation = pin!(computation(&pace));
    let mut context = Context::from_waker(Waker::noop());
    // Nothing but a pause can leave it pending.
    loop {
        if let Poll::Ready(value) = computation.as_mut().poll(&mut context) {
            return value;
        }
    }
}
