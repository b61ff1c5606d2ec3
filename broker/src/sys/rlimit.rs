//! A resource limit of the process that connected to a channel.
//!
//! Promises: it is the limit of exactly that process. The kernel pins the process for the channel (SO_PEERPIDFD, Linux
//! 6.5), it is seen alive before and after, and while a process lives nobody else has its number. Touches that process's
//! limits. Sources: unix(7), pidfd_open(2), prlimit(2).

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use libc::rlimit64;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A soft and a hard limit.
pub type Limits = (u64, u64);

/// The process of a channel's peer.
pub struct PeerProcess {
    pidfd: OwnedFd,
    pid: libc::pid_t,
}

impl PeerProcess {
    /// The process that connected to a channel, whose number the kernel told when it did.
    ///
    /// # Errors
    /// ENOPROTOOPT where the kernel is older than Linux 6.5; ESRCH where the process is gone or in no namespace of ours.
    pub fn of(channel: BorrowedFd<'_>, pid: u32) -> Result<Self, Errno> {
        // 0 would be this process itself.
        let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(Errno::ESRCH)?;
        let mut number: libc::c_int = -1;
        let mut length = libc::socklen_t::try_from(size_of_val(&number)).map_err(|_| Errno::EINVAL)?;
        // SAFETY: the kernel writes at most `length` bytes to `number`, which has that many.
        Errno::result(unsafe {
            libc::getsockopt(
                channel.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERPIDFD,
                (&raw mut number).cast(),
                &raw mut length,
            )
        })?;
        // SAFETY: the kernel has just opened it for this call, and nobody else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Self { pidfd, pid })
    }

    /// Sets what is given of a limit, and gives what is in force then.
    ///
    /// # Errors
    /// EPERM where the broker lacks CAP_SYS_RESOURCE for it, ESRCH where the process is gone.
    pub fn limit(&self, resource: u32, soft: Option<u64>, hard: Option<u64>) -> Result<Limits, Errno> {
        self.alive()?;
        let mut limits = self.call(resource, None)?;
        if soft.is_some() || hard.is_some() {
            self.call(resource, Some((soft.unwrap_or(limits.0), hard.unwrap_or(limits.1))))?;
            limits = self.call(resource, None)?;
        }
        self.alive()?;
        Ok(limits)
    }

    /// A pidfd becomes readable when its process ends.
    fn alive(&self) -> Result<(), Errno> {
        let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ended, PollTimeout::ZERO)? {
            0 => Ok(()),
            _ => Err(Errno::ESRCH),
        }
    }

    fn call(&self, resource: u32, new: Option<Limits>) -> Result<Limits, Errno> {
        let new = new.map(|(soft, hard)| rlimit64 { rlim_cur: soft, rlim_max: hard });
        let mut old = rlimit64 { rlim_cur: 0, rlim_max: 0 };
        let given = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the new limit is valid or absent, and the kernel writes the old one to a place of its size.
        Errno::result(unsafe { libc::prlimit64(self.pid, resource, given, &raw mut old) })?;
        Ok((old.rlim_cur, old.rlim_max))
    }
}
