//! The session keyring: what whoever started the broker keeps there, such as a ticket or a disk's key, is inherited by
//! every process after it, and who has a keyring may read what is in it whatever the user id.
//!
//! Promises: afterwards this process and those it forks have a session keyring of their own, an empty one. Touches
//! nothing else. Sources: keyctl(2), session-keyring(7).

use nix::errno::Errno;

use crate::failure::{Exit, Failure};

const STEP: &str = "session keyring";

// From linux/keyctl.h; libc has no names for them.
const GET_KEYRING_ID: libc::c_long = 0;
const JOIN_SESSION_KEYRING: libc::c_long = 1;
const SESSION_KEYRING: libc::c_long = -3;

/// Leaves the inherited keyring for a new one without a name.
pub fn leave() -> Result<(), Failure> {
    match keyctl(JOIN_SESSION_KEYRING, 0) {
        Ok(_) => Ok(()),
        Err(Errno::EDQUOT) => Err(Failure::new(
            Exit::Unavailable,
            STEP,
            "keyctl KEYCTL_JOIN_SESSION_KEYRING failed: this user has as many keys as kernel.keys.maxkeys allows",
            "raise that sysctl, or end programs of this user that hold keys (/proc/keys)",
        )),
        // A kernel without keys, or a container that refuses them: to the worker too, so there is nothing to reach.
        Err(refused) if keyctl(GET_KEYRING_ID, SESSION_KEYRING) == Err(refused) => Ok(()),
        Err(errno) => Err(Failure::os(STEP, "keyctl KEYCTL_JOIN_SESSION_KEYRING", errno)),
    }
}

fn keyctl(operation: libc::c_long, argument: libc::c_long) -> nix::Result<libc::c_long> {
    // SAFETY: the operations used take numbers, and a null pointer for no name.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, operation, argument, 0_usize, 0_usize, 0_usize) })
}
