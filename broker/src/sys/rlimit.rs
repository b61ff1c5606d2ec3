//! Resource limits of the process that connected to a channel, or that sent a message on the worker's.
//!
//! Promises: a limit is set for exactly this process, and only while it runs as the user that connected. The kernel pins
//! the process for the channel (SO_PEERPIDFD or SO_PASSPIDFD, Linux 6.5), but prlimit(2) takes a number. So the broker checks the
//! process before and after each call; if it has ended meanwhile, the number may be another process's, and the limits
//! that prlimit returned are put back. Touches the limits of that process. Sources: unix(7), pidfd_open(2), prlimit(2),
//! include/uapi/linux/pidfd.h.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use libc::rlimit64;
use nix::errno::Errno;

use super::sender::Sender;
use super::{poll, sockopt};

/// The soft limit, then the hard limit.
pub type Limits = (u64, u64);

/// PIDFD_GET_INFO, Linux 6.13.
pub const GET_INFO: libc::Ioctl = libc::_IOWR::<PidfdInfo>(0xff, 11);

/// struct pidfd_info in its first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

/// Why a limit was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitError {
    /// A call failed.
    Os(Errno),
    /// The process runs as another user than the one that connected: it has executed a set-user-id program.
    OtherUser,
    /// The limit would be lowered, and this kernel does not tell whether the process still runs as the user that
    /// connected.
    Lowered,
    /// The process ended meanwhile, and the limits of the process that has its number now could not be put back.
    NotRestored {
        /// The number.
        pid: libc::pid_t,
        /// Its limits before.
        before: Limits,
        /// Why.
        errno: Errno,
    },
}

impl From<Errno> for LimitError {
    fn from(errno: Errno) -> Self {
        Self::Os(errno)
    }
}

/// The process that connected to a channel, or that sent a message.
pub struct PeerProcess {
    pidfd: OwnedFd,
    pid: libc::pid_t,
    uid: u32,
}

impl PeerProcess {
    /// Pins the process that connected to a channel; `pid` and `uid` are its number and its user from SO_PEERCRED.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// ENOPROTOOPT if the kernel is older than Linux 6.5; ESRCH if the process has ended or is in no PID namespace that
    /// the broker sees.
    pub fn of(channel: BorrowedFd<'_>, pid: u32, uid: u32) -> Result<Self, Errno> {
        // prlimit(2) takes 0 for the calling process.
        let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(Errno::ESRCH)?;
        let pidfd = sockopt::peer_pidfd(channel).map_err(|errno| match errno {
            // Kernels differ in the error for a process that has ended.
            Errno::EINVAL | Errno::ENODATA => Errno::ESRCH,
            errno => errno,
        })?;
        Ok(Self { pidfd, pid, uid })
    }

    /// The process that sent a message.
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// ESRCH if the process is in no PID namespace that the broker sees.
    pub fn of_sender(sender: Sender) -> Result<Self, Errno> {
        let Sender { pid, uid, pidfd } = sender;
        let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(Errno::ESRCH)?;
        Ok(Self { pidfd, pid, uid })
    }

    /// Sets the limits that are not `None`, and returns the current ones. See prlimit(2), Linux 2.6.36.
    ///
    /// # Capabilities
    /// CAP_SYS_RESOURCE to raise a hard limit, and for a process of another user than the broker's.
    ///
    /// # Errors
    /// EPERM without the capability; ESRCH if the process has ended; EINVAL for a soft limit above the hard one.
    pub fn limit(&self, resource: u32, soft: Option<u64>, hard: Option<u64>) -> Result<Limits, LimitError> {
        let knows_user = self.check()?;
        let current = self.prlimit(resource, None)?;
        if soft.is_none() && hard.is_none() {
            self.check()?;
            return Ok(current);
        }
        let new = (soft.unwrap_or(current.0), hard.unwrap_or(current.1));
        if !knows_user && (new.0 < current.0 || new.1 < current.1) {
            return Err(LimitError::Lowered);
        }
        self.set(resource, new)?;
        let current = self.prlimit(resource, None)?;
        self.check()?;
        Ok(current)
    }

    /// Sets both limits of exactly this process: if it has ended or changed its user meanwhile, the limits of the process
    /// with its number are put back.
    fn set(&self, resource: u32, new: Limits) -> Result<(), LimitError> {
        let set = self.prlimit(resource, Some(new));
        // Without the process, an error is about another one.
        let checked = self.check();
        let before = match (set, &checked) {
            (Ok(before), _) => before,
            (Err(errno), Ok(_)) => return Err(errno.into()),
            (Err(_), Err(error)) => return Err(*error),
        };
        let Err(error) = checked else { return Ok(()) };
        let restored = match self.prlimit(resource, None) {
            Ok(now) if now == new => self.prlimit(resource, Some(before)).map(drop),
            // The process has changed its limits itself.
            Ok(_) => Ok(()),
            Err(errno) => Err(errno),
        };
        match restored {
            Ok(()) | Err(Errno::ESRCH) => Err(error),
            Err(errno) => Err(LimitError::NotRestored { pid: self.pid, before, errno }),
        }
    }

    /// Fails with ESRCH once the process has ended: its pidfd is readable then. Fails if the process does not run as the
    /// user that connected. Returns whether the kernel tells the user.
    fn check(&self) -> Result<bool, LimitError> {
        // No process has more power than one of user 0.
        let known = if self.uid == 0 { Some(true) } else { self.is_users()? };
        if poll::readable(&self.pidfd, Duration::ZERO)? {
            return Err(Errno::ESRCH.into());
        }
        match known {
            Some(false) => Err(LimitError::OtherUser),
            known => Ok(known.is_some()),
        }
    }

    /// Whether all user ids of the process are those of the user that connected: the condition under which prlimit(2)
    /// needs no capability. `None` if the kernel does not tell.
    fn is_users(&self) -> Result<Option<bool>, Errno> {
        let mut info = PidfdInfo::default();
        // SAFETY: the kernel writes at most the size that is part of the request, which is that of `info`.
        let result = unsafe { libc::ioctl(self.pidfd.as_raw_fd(), GET_INFO, &raw mut info) };
        match Errno::result(result) {
            Ok(_) => Ok(Some([info.ruid, info.euid, info.suid, info.fsuid] == [self.uid; 4])),
            Err(Errno::ESRCH) => Err(Errno::ESRCH),
            // Linux before 6.13.
            Err(_) => Ok(None),
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

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd as _;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const NOFILE: u32 = libc::RLIMIT_NOFILE;

    /// A process that ends when its standard input is closed.
    fn child() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    fn pidfd(child: &Child) -> OwnedFd {
        // SAFETY: the call takes two numbers, and nothing else owns the descriptor that it opens.
        unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, child.id(), 0);
            OwnedFd::from_raw_fd(i32::try_from(fd).unwrap())
        }
    }

    fn process(pidfd: OwnedFd, child: &Child) -> PeerProcess {
        let uid = nix::unistd::geteuid().as_raw();
        PeerProcess { pidfd, pid: child.id().cast_signed(), uid }
    }

    #[test]
    fn a_process_that_got_the_number_of_one_that_ended_keeps_its_limits() {
        let (first, second) = (child(), child());
        let ended = pidfd(&first);
        end(first);
        let reused = process(ended, &second);
        let before = reused.prlimit(NOFILE, None).unwrap();
        assert!(before.0 > 64, "{before:?}");
        // As if the process had ended after the first check.
        assert_eq!(reused.set(NOFILE, (64, before.1)), Err(Errno::ESRCH.into()));
        assert_eq!(reused.prlimit(NOFILE, None).unwrap(), before);
        assert_eq!(reused.limit(NOFILE, Some(64), None), Err(Errno::ESRCH.into()));
        assert_eq!(reused.limit(NOFILE, None, None), Err(Errno::ESRCH.into()));
        end(second);
    }

    #[test]
    fn a_zombie_has_no_limits_to_set() {
        let mut zombie = child();
        let process = process(pidfd(&zombie), &zombie);
        let before = process.limit(NOFILE, None, None).unwrap();
        drop(zombie.stdin.take());
        assert!(poll::readable(&process.pidfd, Duration::from_secs(60)).unwrap());
        assert_eq!(process.limit(NOFILE, Some(before.0), None), Err(Errno::ESRCH.into()));
        zombie.wait().unwrap();
    }

    #[test]
    fn a_process_that_changed_its_user_keeps_its_limits() {
        let child = child();
        let own = process(pidfd(&child), &child);
        // The user that connected is another one.
        let other = PeerProcess { uid: own.uid + 1, pidfd: pidfd(&child), pid: own.pid };
        let before = own.limit(NOFILE, None, None).unwrap();
        let lowered = (before.0 - 1, before.1);
        let expected = match other.is_users().unwrap() {
            Some(_) => LimitError::OtherUser,
            None => LimitError::Lowered,
        };
        assert_eq!(other.limit(NOFILE, Some(lowered.0), None), Err(expected));
        if expected == LimitError::OtherUser {
            // As if it had changed its user after the first check.
            assert_eq!(other.set(NOFILE, lowered), Err(expected));
        }
        assert_eq!(own.limit(NOFILE, None, None).unwrap(), before);
        assert_eq!(own.limit(NOFILE, Some(lowered.0), None).unwrap(), lowered);
        end(child);
    }
}
