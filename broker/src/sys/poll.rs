//! Waiting for one descriptor. See poll(2).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Whether the descriptor can be read, or has reached its end, within the timeout. A signal does not end the wait.
///
/// # Capabilities
/// None.
///
/// # Errors
/// Those of poll(2), except EINTR.
pub fn readable(descriptor: impl AsFd, timeout: Duration) -> nix::Result<bool> {
    wait(descriptor, PollFlags::POLLIN, timeout)
}

/// Whether the descriptor can be written within the timeout. A signal does not end the wait.
///
/// # Capabilities
/// None.
///
/// # Errors
/// Those of poll(2), except EINTR.
pub fn writable(descriptor: impl AsFd, timeout: Duration) -> nix::Result<bool> {
    wait(descriptor, PollFlags::POLLOUT, timeout)
}

/// Whether the other end of a connected socket is closed.
///
/// # Capabilities
/// None.
///
/// # Errors
/// Those of poll(2), except EINTR.
pub fn hung_up(socket: impl AsFd) -> nix::Result<bool> {
    wait(socket, PollFlags::empty(), Duration::ZERO)
}

/// The timeout of poll(2) that ends when a time has come. Rounded up: a timeout of 0 would return before.
///
/// # Capabilities
/// None.
pub fn timeout_at(time: Instant) -> PollTimeout {
    let remaining = time.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    PollTimeout::try_from(remaining).unwrap_or(PollTimeout::MAX)
}

fn wait(descriptor: impl AsFd, events: PollFlags, timeout: Duration) -> nix::Result<bool> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(descriptor.as_fd(), events)], timeout) {
            Err(Errno::EINTR) => {}
            result => return result.map(|ready| ready > 0),
        }
    }
}
