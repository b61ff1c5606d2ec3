//! Replaces the session keyring. Child processes inherit it, with the keys of the user who started the broker (a Kerberos
//! ticket, a disk key), and every holder of a keyring can read its keys, whatever its user id.
//!
//! Promises: afterwards this process and its children have a new, empty session keyring. Touches nothing else. Sources:
//! keyctl(2), session-keyring(7).

use nix::errno::Errno;

use crate::failure::{Exit, Failure};

const STEP: &str = "session keyring";

// From linux/keyctl.h; the libc crate lacks them.
const GET_KEYRING_ID: libc::c_long = 0;
const JOIN_SESSION_KEYRING: libc::c_long = 1;
const SESSION_KEYRING: libc::c_long = -3;

/// Replaces the inherited session keyring by a new anonymous one.
pub fn replace_session_keyring() -> Result<(), Failure> {
    match keyctl(JOIN_SESSION_KEYRING, 0) {
        Ok(_) => Ok(()),
        Err(Errno::EDQUOT) => Err(Failure::new(
            Exit::Unavailable,
            STEP,
            "keyctl KEYCTL_JOIN_SESSION_KEYRING failed: this user has reached the limit kernel.keys.maxkeys",
            "raise that sysctl, or end programs of this user that hold keys (/proc/keys)",
        )),
        // The kernel has no keyrings, or a container denies them: to the worker too, so it cannot read any key.
        Err(refused) if keyctl(GET_KEYRING_ID, SESSION_KEYRING) == Err(refused) => Ok(()),
        Err(errno) => Err(Failure::os(STEP, "keyctl KEYCTL_JOIN_SESSION_KEYRING", errno)),
    }
}

fn keyctl(operation: libc::c_long, argument: libc::c_long) -> nix::Result<libc::c_long> {
    // SAFETY: the operations used take numbers, and a null pointer for no name.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, operation, argument, 0_usize, 0_usize, 0_usize) })
}
