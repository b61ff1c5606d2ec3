//! The signals of this process.

use std::ptr;

use nix::sys::signal::SigSet;

/// At least as large as the kernel's struct sigaction, which begins with the handler.
type Action = [usize; 8];

/// The default action.
static NONE: Action = [0; 8];
/// The highest signal number of Linux.
const HIGHEST: i32 = 64;
/// The length of the kernel's set of signals in bytes.
const MASK_LENGTH: usize = 8;

/// Unblocks every signal, and gives the signals that the starter ignored their default action: both are inherited through exec.
/// SIGPIPE stays ignored, as in every Rust program. See signal(7), sigaction(2), pthread_sigmask(3).
///
/// # Capabilities
/// None.
///
/// # Errors
/// Those of pthread_sigmask(3).
pub fn reset() -> nix::Result<()> {
    for number in (1..=HIGHEST).filter(|number| *number != libc::SIGPIPE) {
        if handler(number) == Some(libc::SIG_IGN) {
            // SAFETY: the kernel reads an action of zeros: the default, without flags or signals to block.
            unsafe {
                libc::syscall(
                    libc::SYS_rt_sigaction,
                    number,
                    &raw const NONE,
                    ptr::null::<Action>(),
                    MASK_LENGTH,
                )
            };
        }
    }
    SigSet::empty().thread_set_mask()
}

/// The handler of a signal, as the kernel has it: the C library hides the two signals that it uses itself.
fn handler(number: i32) -> Option<usize> {
    let mut action = NONE;
    let no_change = ptr::null::<Action>();
    // SAFETY: the call changes nothing and fills `action`, which is larger than the kernel's structure.
    let read =
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, no_change, &raw mut action, MASK_LENGTH) };
    (read == 0).then_some(action[0])
}
