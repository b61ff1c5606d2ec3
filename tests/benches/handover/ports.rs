//! Ports in turn, so that none is asked for again while its last listener may still be closing.

use std::sync::atomic::{AtomicU16, Ordering};

/// The first port, and how many there are.
pub const FIRST: u16 = 20_000;
/// See [`FIRST`].
pub const COUNT: u16 = 20_000;

/// The next `count` ports.
pub fn next(count: usize) -> impl Iterator<Item = u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let step = u16::try_from(count).unwrap();
    let start = NEXT.load(Ordering::Relaxed);
    NEXT.store((start + step) % COUNT, Ordering::Relaxed);
    (0..step).map(move |offset| FIRST + (start + offset) % COUNT)
}
