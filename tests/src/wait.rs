//! Waiting for what no event tells, such as the kernel's tables: asked again until it holds or a deadline ends it.

use std::time::{Duration, Instant};

/// How long anything may take that should take no time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks until there is an answer; fails with `what` was awaited when [`PATIENCE`] ends.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            Instant::now() < end,
            "{what}: not after {} s{}",
            PATIENCE.as_secs(),
            crate::census::holders()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
