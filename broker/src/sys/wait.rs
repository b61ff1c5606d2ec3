//! Children of this process that run or have ended. See waitid(2).
//!
//! Not by the functions of nix: they fail for a child that a signal without a name has killed, a real-time signal, and one of
//! them after it has reaped the child.

use std::fmt;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It called exit(3).
    Exit(i32),
    /// A signal killed it.
    Signal(i32),
}

impl fmt::Display for Ending {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Exit(code) => write!(out, "exited with code {code}"),
            Ending::Signal(signal) => match Signal::try_from(*signal) {
                Ok(signal) => write!(out, "was killed by {signal}"),
                Err(_) => write!(out, "was killed by signal {signal}"),
            },
        }
    }
}

/// Also children that do not send SIGCHLD.
const ENDED: i32 = libc::WEXITED | libc::__WALL;
/// Changes nothing and does not block.
const ENDED_UNREAPED: i32 = ENDED | libc::WNOHANG | libc::WNOWAIT;

/// Waits until a child has ended, reaps it, and returns how it ended.
///
/// # Capabilities
/// None.
///
/// # Errors
/// ECHILD if there is no such child.
pub fn wait_for_exit(child: Pid) -> nix::Result<Ending> {
    Ok(wait(Some(child), ENDED)?.ok_or(Errno::ECHILD)?.1)
}

/// Reaps a child that has ended, if there is one.
///
/// # Capabilities
/// None.
///
/// # Errors
/// ECHILD if this process has no children.
pub fn reap() -> nix::Result<Option<(Pid, Ending)>> {
    wait(None, ENDED | libc::WNOHANG)
}

/// Whether this process has a child that it has not reaped.
///
/// # Capabilities
/// None.
pub fn has_children() -> bool {
    wait(None, ENDED_UNREAPED) != Err(Errno::ECHILD)
}

/// A child that has ended and is not reaped yet.
///
/// # Capabilities
/// None.
pub fn ended_child() -> Option<Pid> {
    Some(wait(None, ENDED_UNREAPED).ok()??.0)
}

/// Whether this process is the parent of `pid`, which it has not reaped.
///
/// # Capabilities
/// None.
pub fn is_child(pid: Pid) -> bool {
    wait(Some(pid), ENDED_UNREAPED).is_ok()
}

/// Whether a child runs: it has not ended.
///
/// # Capabilities
/// None.
pub fn is_running_child(pid: Pid) -> bool {
    wait(Some(pid), ENDED_UNREAPED) == Ok(None)
}

/// waitid(2) for one child or any. `None` if none has ended.
fn wait(child: Option<Pid>, flags: i32) -> nix::Result<Option<(Pid, Ending)>> {
    let (kind, id) = match child {
        Some(child) => (libc::P_PID, child.as_raw().cast_unsigned()),
        None => (libc::P_ALL, 0),
    };
    // SAFETY: all fields of siginfo_t may be 0, and the kernel leaves them so if no child has ended.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes only to `info`, which outlives the call.
    while let Err(error) = Errno::result(unsafe { libc::waitid(kind, id, &raw mut info, flags) }) {
        if error != Errno::EINTR {
            return Err(error);
        }
    }
    // SAFETY: waitid fills in the fields of SIGCHLD, or leaves all of them 0.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok(match (pid, info.si_code) {
        (0, _) => None,
        (pid, libc::CLD_EXITED) => Some((Pid::from_raw(pid), Ending::Exit(status))),
        (pid, _) => Some((Pid::from_raw(pid), Ending::Signal(status))),
    })
}
