//! The descriptors and the environment that the broker was started with, reduced to what it knows.
//!
//! Afterwards 0, 1 and 2 are open, nothing above them is, and the environment holds only names of the list
//! below. Runs first, while the process has one thread.

use std::fs::File;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};

use crate::failure::Failure;

const STEP: &str = "descriptors";

/// What the broker reads from its environment: the service manager's protocol (sd_notify(3)), and whether
/// standard error is the journal.
const ENVIRONMENT: [&str; 4] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM"];

/// Opens what is missing of 0, 1 and 2 on /dev/null and closes everything above.
pub fn settle() -> Result<(), Failure> {
    loop {
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(|error| Failure::os(STEP, "open /dev/null", error))?;
        // The kernel gives the lowest free number, so this fills the gaps from below.
        if null.as_raw_fd() > 2 {
            break;
        }
        let _kept_open = null.into_raw_fd();
    }
    // SAFETY: nothing in this process has opened a descriptor above 2 that it still means to use.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } != 0 {
        return Err(Failure::os(STEP, "close_range(3, ~0)", std::io::Error::last_os_error()));
    }
    Ok(())
}

/// Removes every environment variable that the broker does not know.
pub fn clear_environment() {
    for (name, _) in std::env::vars_os() {
        if !ENVIRONMENT.iter().any(|known| name == *known) {
            // SAFETY: the process has one thread, so nothing reads the environment meanwhile.
            unsafe { std::env::remove_var(name) };
        }
    }
}
