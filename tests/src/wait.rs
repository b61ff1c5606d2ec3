//! Polling for conditions that cause no event, such as a change of the kernel's tables.

use std::time::{Duration, Instant};

/// The timeout of everything that should be immediate.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// A time limit of the harness on this machine: `PORTREEVE_TEST_SLOWNESS`, an integer, multiplies it, which emulated
/// machines need. It does not change the times that tests assert.
pub fn scaled(time: Duration) -> Duration {
    time * slowness().unwrap_or(1)
}

/// `PORTREEVE_TEST_SLOWNESS`: how many times slower than an ordinary machine this one is. It is set on emulated machines.
pub fn slowness() -> Option<u32> {
    let number = std::env::var("PORTREEVE_TEST_SLOWNESS").ok()?;
    let parsed = number.parse();
    Some(parsed.unwrap_or_else(|_| panic!("PORTREEVE_TEST_SLOWNESS is not an integer: {number:?}")))
}

/// Polls until there is a value and returns it. Panics with the description `what` after [`TIMEOUT`].
#[track_caller]
pub fn eventually<T>(what: &str, poll: impl FnMut() -> Option<T>) -> T {
    within(TIMEOUT, what, poll)
}

/// The same with another time limit.
#[track_caller]
pub fn within<T>(limit: Duration, what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(
            Instant::now() < end,
            "{what}: not after {} s{}",
            limit.as_secs(),
            crate::resources::tcp_listener_holders()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
