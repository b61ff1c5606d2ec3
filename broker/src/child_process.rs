//! Waits, at the start, until a forked process has confined itself.

use std::os::fd::AsFd;
use std::time::Duration;

use crate::failure::Failure;
use crate::sys::poll;

/// How long a forked process may take to confine itself.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Waits until the first message, or the end of the process, can be received from the channel.
///
/// # Errors
/// Nothing arrived in time.
pub fn await_first_message(step: &'static str, channel: impl AsFd) -> Result<(), Failure> {
    match poll::readable(channel, TIMEOUT) {
        Ok(false) => {
            Err(Failure::os(step, "confining itself", format_args!("no message within {TIMEOUT:?}")))
        }
        Ok(true) => Ok(()),
        Err(error) => Err(Failure::os(step, "poll", error)),
    }
}
