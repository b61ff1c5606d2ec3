//! Waiting for what no event tells, such as the kernel's tables: asked again until it holds or a deadline ends it.

use std::time::{Duration, Instant};

/// How long anything may take that should take no time.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// A time limit of the harness on this machine: `PORTREEVE_TEST_SLOWNESS`, a whole number, multiplies it. Emulated
/// machines need that. It changes no time that a test asserts.
pub fn scaled(time: Duration) -> Duration {
    time * slowness().unwrap_or(1)
}

/// How many times slower this machine is said to be than one of ordinary speed: none says it of a machine that is not
/// emulated.
pub fn slowness() -> Option<u32> {
    let number = std::env::var("PORTREEVE_TEST_SLOWNESS").ok()?;
    let parsed = number.parse();
    Some(parsed.unwrap_or_else(|_| panic!("PORTREEVE_TEST_SLOWNESS is no whole number: {number:?}")))
}

/// Asks until there is an answer; fails with `what` was awaited when [`TIMEOUT`] ends.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + TIMEOUT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            Instant::now() < end,
            "{what}: not after {} s{}",
            TIMEOUT.as_secs(),
            crate::resources::tcp_listener_holders()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
