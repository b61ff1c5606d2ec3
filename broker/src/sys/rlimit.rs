//! Resource limits of the process that connected to a channel.
//!
//! Promises: a limit is that of exactly this process. The kernel pins the process for the channel (SO_PEERPIDFD, Linux
//! 6.5). The broker checks before and after each call that the process is alive; the kernel does not reuse the
//! number of a live process. Touches the limits of that process. Sources: unix(7), pidfd_open(2), prlimit(2).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use libc::rlimit64;
use nix::errno::Errno;

use super::{poll, sockopt};

/// The soft limit, then the hard limit.
pub type Limits = (u64, u64);

/// The process that connected to a channel.
pub struct PeerProcess {
    pidfd: OwnedFd,
    pid: libc::pid_t,
}

impl PeerProcess {
    /// Pins the process that connected to a channel; `pid` is its number from SO_PEERCRED.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// ENOPROTOOPT if the kernel is older than Linux 6.5; ESRCH if the process has ended or is in no PID namespace that
    /// the broker sees.
    pub fn of(channel: BorrowedFd<'_>, pid: u32) -> Result<Self, Errno> {
        // prlimit(2) takes 0 for the calling process.
        let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(Errno::ESRCH)?;
        let pidfd = sockopt::peer_pidfd(channel)?;
        Ok(Self { pidfd, pid })
    }

    /// Sets the limits that are not `None`, and returns the current ones. See prlimit(2), Linux 2.6.36.
    ///
    /// # Capabilities
    /// CAP_SYS_RESOURCE to raise a hard limit, and for a process of another user than the broker's.
    ///
    /// # Errors
    /// EPERM without the capability; ESRCH if the process has ended; EINVAL for a soft limit above the hard one.
    pub fn limit(&self, resource: u32, soft: Option<u64>, hard: Option<u64>) -> Result<Limits, Errno> {
        self.check_alive()?;
        let mut limits = self.prlimit(resource, None)?;
        if soft.is_some() || hard.is_some() {
            self.prlimit(resource, Some((soft.unwrap_or(limits.0), hard.unwrap_or(limits.1))))?;
            limits = self.prlimit(resource, None)?;
        }
        self.check_alive()?;
        Ok(limits)
    }

    /// ESRCH once the process has ended: its pidfd is readable then.
    fn check_alive(&self) -> Result<(), Errno> {
        match poll::readable(&self.pidfd, Duration::ZERO)? {
            false => Ok(()),
            true => Err(Errno::ESRCH),
        }
    }

    fn prlimit(&self, resource: u32, new: Option<Limits>) -> Result<Limits, Errno> {
        let new = new.map(|(soft, hard)| rlimit64 { rlim_cur: soft, rlim_max: hard });
        let mut old = rlimit64 { rlim_cur: 0, rlim_max: 0 };
        let new_pointer = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `new_pointer` points to a limit or is null, and the kernel writes the old limit to a place of its size.
        Errno::result(unsafe { libc::prlimit64(self.pid, resource, new_pointer, &raw mut old) })?;
        Ok((old.rlim_cur, old.rlim_max))
    }
}
