//! This process and its children.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{ForkResult, Pid};

/// The real user id. See getuid(2).
///
/// # Capabilities
/// None.
pub fn real_uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// The effective user id. See geteuid(2).
///
/// # Capabilities
/// None.
pub fn effective_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Forks a child that runs `run` and exits with its result; returns the child's id. See fork(2).
///
/// # Capabilities
/// None.
///
/// # Errors
/// Those of fork(2); EBUSY if this process has more than one thread or /proc does not show its threads.
pub fn fork(run: impl FnOnce() -> i32) -> nix::Result<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return Err(Errno::EBUSY);
    }
    // SAFETY: the process is single-threaded, so no lock is held by a thread that the child lacks.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            let code = run();
            // SAFETY: _exit runs no destructors or exit handlers of the parent.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => Ok(child),
    }
}

/// Waits until a child has ended, reaps it, and returns how it ended. See waitid(2).
///
/// # Capabilities
/// None.
///
/// # Errors
/// ECHILD if there is no such child.
pub fn wait_for_exit(child: Pid) -> nix::Result<WaitStatus> {
    waitid(Id::Pid(child), WaitPidFlag::WEXITED)
}
