//! Waiting, at the start, for a process that the broker has forked and that confines itself.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::Failure;

/// How long such a process may take to confine itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until its first word, or its end, can be received from the channel.
///
/// # Errors
/// Nothing came in time.
pub fn await_word(step: &'static str, channel: impl AsFd) -> Result<(), Failure> {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let mut watched = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    let answered = loop {
        match poll(&mut watched, timeout) {
            Err(Errno::EINTR) => {}
            other => break other,
        }
    };
    match answered {
        Ok(0) => Err(Failure::os(step, "confining itself", format_args!("no answer in {PATIENCE:?}"))),
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::os(step, "poll", error)),
    }
}
