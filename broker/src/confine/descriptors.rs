//! Closes the inherited descriptors and removes the environment variables that the broker does not use.
//!
//! Afterwards descriptors 0, 1 and 2 are open, no other descriptor is open except those that the service manager passed,
//! and the environment holds only the names in the list below. Runs first, while the process has one thread.

use std::fs::File;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};

use crate::failure::{Exit, Failure};

const STEP: &str = "descriptors";

/// The environment variables that the broker reads: the service manager's protocol (sd_notify(3)), whether standard error is
/// the journal, and how many descriptors the service manager stores.
const ENVIRONMENT: [&str; 5] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "FDSTORE"];

/// The first descriptor that a service manager passes. See sd_listen_fds(3).
const FIRST: RawFd = 3;

/// A descriptor that the service manager passed.
#[derive(Debug)]
pub struct Passed {
    /// Its name from LISTEN_FDNAMES.
    pub name: String,
    /// Its number at the start.
    pub number: RawFd,
    /// The descriptor.
    pub descriptor: OwnedFd,
}

/// Opens the missing ones of descriptors 0, 1 and 2 on /dev/null, and closes all others except those that the service
/// manager passed, and the one with the number `keep`; these are returned.
pub fn close_unneeded(keep: Option<RawFd>) -> Result<(Vec<Passed>, Option<OwnedFd>), Failure> {
    let passed = passed();
    let above = FIRST + RawFd::try_from(passed.len()).unwrap_or(0);
    let kept = keep.map(|number| inherited(number).filter(|_| number >= above).ok_or(number)).transpose();
    let kept = kept.map_err(|number| {
        let what = format_args!("--notify-fd {number} is no open descriptor of its own");
        Failure::new(
            Exit::Usage,
            STEP,
            what,
            "pass an open descriptor with a number above those of LISTEN_FDS",
        )
    })?;
    loop {
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(|error| Failure::os(STEP, "open /dev/null", error))?;
        // The kernel assigns the lowest free number, so this fills the gaps from below.
        if null.as_raw_fd() > 2 {
            break;
        }
        let _ = null.into_raw_fd(); // stays open
    }
    let mut first = above.unsigned_abs();
    for number in kept.iter().map(|kept| kept.as_raw_fd().unsigned_abs()).chain([u32::MAX]) {
        // SAFETY: nothing in this process has opened a descriptor in this range that it still uses.
        if number > first && unsafe { libc::close_range(first, number - 1, 0) } != 0 {
            return Err(Failure::os(STEP, "close_range(3, ~0)", std::io::Error::last_os_error()));
        }
        first = number.saturating_add(1);
    }
    Ok((passed, kept))
}

/// A descriptor that was inherited through exec, close-on-exec from now on; `None` if it is not open. Each is taken once.
fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: setting the flag of a descriptor touches no memory; one that is not open gives EBADF.
    let open = number >= FIRST && unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: it is open, was inherited through exec, and nothing in this process owns it yet.
    open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// The descriptors of LISTEN_FDS and LISTEN_FDNAMES, if LISTEN_PID is this process.
fn passed() -> Vec<Passed> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let count = match number("LISTEN_PID") {
        Some(process) if process == std::process::id() => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    };
    let count = usize::try_from(count).unwrap_or(0);
    let mut names = names.split(':');
    let descriptors = (FIRST..).take(count).map_while(inherited);
    descriptors
        .map(|descriptor| Passed {
            name: names.next().unwrap_or_default().to_owned(),
            number: descriptor.as_raw_fd(),
            descriptor,
        })
        .collect()
}

/// Closes the descriptors that only the broker needs in a forked child.
pub fn close_all_but<'a>(keep: impl Iterator<Item = BorrowedFd<'a>>) {
    let mut keep: Vec<u32> = keep.filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    keep.sort_unstable();
    let mut first = 3;
    for number in keep.into_iter().chain([u32::MAX]) {
        if number > first {
            // SAFETY: the owners of these descriptors belong to the broker; this forked copy never uses them again.
            unsafe { libc::close_range(first, number - 1, 0) };
        }
        first = number.saturating_add(1);
    }
}

/// Removes every environment variable that the broker does not use.
pub fn clear_environment() {
    for (name, _) in std::env::vars_os() {
        if !ENVIRONMENT.iter().any(|known| name == *known) {
            // SAFETY: the process has one thread, so nothing reads the environment meanwhile.
            unsafe { std::env::remove_var(name) };
        }
    }
}
