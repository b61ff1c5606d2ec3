//! Waits at the start for a forked process that confines itself.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::Failure;

/// How long a forked process may take to confine itself.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Waits until the first message, or the end of the process, can be received from the channel.
///
/// # Errors
/// Nothing arrived in time.
pub fn await_first_message(step: &'static str, channel: impl AsFd) -> Result<(), Failure> {
    let timeout = PollTimeout::try_from(TIMEOUT).unwrap_or(PollTimeout::MAX);
    let mut watched = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    let answered = loop {
        match poll(&mut watched, timeout) {
            Err(Errno::EINTR) => {}
            other => break other,
        }
    };
    match answered {
        Ok(0) => Err(Failure::os(step, "confining itself", format_args!("no message within {TIMEOUT:?}"))),
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::os(step, "poll", error)),
    }
}
