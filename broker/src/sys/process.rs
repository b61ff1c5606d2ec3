//! This process, forks and signals. For children that end, see [`super::wait`].

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, getpgid, getpgrp, getppid};

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

/// Names this process as ps(1) shows it. See PR_SET_NAME(2const).
///
/// # Capabilities
/// None.
pub fn set_name(name: &CStr) {
    let _ = prctl::set_name(name); // it cannot fail with a valid text
}

/// Makes this process the parent of its descendants whose own parent ends, and reads that back. Children do not inherit it.
/// See PR_SET_CHILD_SUBREAPER(2const).
///
/// # Capabilities
/// None.
///
/// # Errors
/// Those of prctl(2); EPROTO if the kernel reports something else afterwards.
pub fn adopt_orphans() -> nix::Result<()> {
    prctl::set_child_subreaper(true)?;
    if prctl::get_child_subreaper()? { Ok(()) } else { Err(Errno::EPROTO) }
}

/// Makes the kernel kill this process when its parent ends, and reads that back. It lasts across exec, except of a program
/// that gains privileges; this process can undo it. See PR_SET_PDEATHSIG(2const).
///
/// # Capabilities
/// None.
///
/// # Errors
/// Those of prctl(2); EPROTO if the kernel reports something else afterwards; ESRCH if `parent` has already ended.
pub fn end_with_parent(parent: Pid) -> nix::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    match prctl::get_pdeathsig()? {
        Some(Signal::SIGKILL) if getppid() == parent => Ok(()),
        Some(Signal::SIGKILL) => Err(Errno::ESRCH),
        _ => Err(Errno::EPROTO),
    }
}

/// Sends a signal to a process, by its number: there are signals without names. See kill(2).
///
/// # Capabilities
/// CAP_KILL for a process of another user; none for one whose real or saved user id is the real or effective one of this
/// process.
///
/// # Errors
/// EINVAL for a number that is no signal; ESRCH if there is no such process; EPERM.
pub fn signal(pid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: kill(2) gets no pointers, and no memory depends on it.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// Sends SIGKILL to every process of a child's process group, at once: none can escape by forking. Not if it is the group of
/// this process. See getpgid(2), killpg(3).
///
/// # Capabilities
/// As [`signal`].
///
/// # Errors
/// ESRCH if there is no such process; EPERM.
pub fn kill_group_of(child: Pid) -> nix::Result<()> {
    let group = getpgid(Some(child))?;
    if group == getpgrp() { Ok(()) } else { nix::sys::signal::killpg(group, Signal::SIGKILL) }
}

/// A handle of a process; it can be read once the process has ended. See pidfd_open(2), Linux 5.3.
///
/// # Capabilities
/// None.
///
/// # Errors
/// ESRCH if there is no such process.
pub fn handle(pid: u32) -> nix::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).ok_or(Errno::ESRCH)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// The ids of all processes that /proc shows.
///
/// # Capabilities
/// None; with the mount options hidepid= of proc(5), CAP_SYS_PTRACE for processes of other users.
pub fn ids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The process that has the socket with this inode number, if /proc shows it. See proc_pid_fd(5).
///
/// # Capabilities
/// CAP_SYS_PTRACE for processes of other users.
pub fn with_socket(inode: u32) -> Option<u32> {
    let link = format!("socket:[{inode}]");
    ids().find(|pid| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
        links.any(|to| to.as_os_str() == link.as_str())
    })
}

/// A process, as /proc describes it. See proc_pid_status(5).
#[derive(Debug, PartialEq, Eq)]
pub struct Description {
    /// The name of its program, with the kernel's escapes.
    pub name: String,
    /// The process id of its parent.
    pub parent: u32,
    /// Its real, effective and saved user id.
    pub users: [u32; 3],
}

impl Description {
    /// Reads it; `None` if /proc does not show the process.
    ///
    /// # Capabilities
    /// As [`ids`].
    pub fn of(pid: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        let users: Vec<u32> =
            field("Uid")?.split_whitespace().take(3).map_while(|id| id.parse().ok()).collect();
        Some(Self {
            name: field("Name")?.to_owned(),
            parent: field("PPid")?.parse().ok()?,
            users: users.try_into().ok()?,
        })
    }
}
