//! The system call filter of the program: how the child process installs it, and how its supervisor gets the descriptor.
//!
//! Promises: what the child does here allocates nothing and takes no lock, so it may be done between fork(2) and execve(2) of a
//! process that has threads.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use libc::sock_filter;
use portreeve_protocol::channel::{ReceiveError, receive as receive_packet};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::notifications::Notifications;
use crate::sys;

/// AUDIT_ARCH of this architecture: see linux/audit.h.
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else if cfg!(target_arch = "aarch64") {
    0xc000_00b7
} else if cfg!(target_arch = "riscv64") {
    0xc000_00f3
} else {
    panic!("portreeve-intercept has no filter for this architecture")
};

/// bind(2). A 32-bit call and one of the x32 ABI have other numbers or another architecture: the filter allows it, and the kernel
/// judges it.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
const BIND: u32 = libc::SYS_bind as u32;

/// Offsets in seccomp_data: see seccomp(2).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// The filter: bind(2) of this architecture notifies the supervisor, every other call is allowed.
pub(crate) static PROGRAM: [sock_filter; 6] = [
    sock_filter { code: LOAD, jt: 0, jf: 0, k: ARCH },
    sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 2, k: ARCHITECTURE },
    sock_filter { code: LOAD, jt: 0, jf: 0, k: NUMBER },
    sock_filter { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: BIND },
    sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF },
];

/// The reason that no filter is installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// A process has one such filter at most.
    #[error(
        "bind(2) is already intercepted here: a container runtime or another supervisor has a seccomp filter with a \
         notification listener (EBUSY), and Linux allows one. Run without it, or outside the container"
    )]
    Busy,
    /// The kernel, or a filter around this process, lacks what is needed.
    #[error(
        "cannot intercept bind(2): seccomp user notification with SECCOMP_IOCTL_NOTIF_ADDFD is not available ({0}). It needs \
         Linux 5.9 or later, and no filter that denies seccomp(2)"
    )]
    Unsupported(io::Error),
    /// Another call of the child failed.
    #[error("cannot intercept bind(2): {0}")]
    Other(io::Error),
}

impl InstallError {
    /// From the error of seccomp(2).
    fn new(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EBUSY) => InstallError::Busy,
            Some(libc::ENOSYS | libc::EINVAL | libc::EPERM | libc::ENOTTY) => {
                InstallError::Unsupported(error)
            }
            _ => InstallError::Other(error),
        }
    }
}

/// Creates the ends of the supervisor and of its child, for [`receive`] and [`install`].
///
/// # Errors
/// Those of socketpair(2).
pub fn channel() -> io::Result<(UnixDatagram, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (parent, child) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((parent.into(), child))
}

/// Installs the filter in this process and sends its descriptor to the supervisor, or the error: also if the supervisor could not
/// pass a socket on, so that the program is not executed. This process and its children have no CAP_SYS_PTRACE and
/// can gain no privileges from then on (PR_SET_NO_NEW_PRIVS). The descriptor is close-on-exec.
///
/// # Errors
/// As sent to the supervisor.
pub fn install(supervisor: BorrowedFd<'_>) -> io::Result<()> {
    let installed = drop_tracing()
        .and_then(|()| rustix::thread::set_no_new_privs(true))
        .map_err(io::Error::from)
        .and_then(|()| sys::install_filter(&PROGRAM))
        .and_then(|(listener, interruptible)| {
            sys::probe_addfd(listener.as_fd())?;
            Ok((listener, interruptible))
        });
    match &installed {
        Ok((listener, interruptible)) => {
            let packet = i32::from(*interruptible).to_ne_bytes();
            sys::send_descriptor(supervisor, &packet, listener.as_fd())?;
        }
        Err(error) => {
            let number = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
            rustix::net::send(supervisor, &number, rustix::net::SendFlags::NOSIGNAL)?;
        }
    }
    installed.map(drop)
}

/// Drops CAP_SYS_PTRACE, if this process has it: a program with it could look into its supervisor. Without new privileges, execve(2)
/// does not give it back to root either.
fn drop_tracing() -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    if sets.permitted.union(sets.inheritable).contains(CapabilitySet::SYS_PTRACE) {
        for set in [&mut sets.permitted, &mut sets.effective, &mut sets.inheritable] {
            set.remove(CapabilitySet::SYS_PTRACE);
        }
        set_capabilities(None, sets)?;
    }
    Ok(())
}

/// Receives what the child has sent; `None` if the child ended before it sent anything.
///
/// # Errors
/// The child could not install the filter.
pub fn receive(child: &UnixDatagram) -> Result<Option<Notifications>, InstallError> {
    let (mut packet, mut descriptors) = ([0; 4], Vec::new());
    match receive_packet(child, &mut packet, &mut descriptors) {
        Ok(_) => {}
        Err(ReceiveError::Closed) => return Ok(None),
        Err(error) => return Err(InstallError::Other(io::Error::other(error))),
    }
    let number = i32::from_ne_bytes(packet);
    match descriptors.pop() {
        Some(listener) => Ok(Some(Notifications::new(listener, number != 0))),
        None => Err(InstallError::new(io::Error::from_raw_os_error(number))),
    }
}

/// Lets a command run its program with the filter: [`receive`] returns its notifications once the command has been spawned. The
/// program gets SIGTERM when the thread that spawns it ends.
///
/// # Errors
/// Those of socketpair(2).
pub fn intercept(command: &mut std::process::Command) -> io::Result<UnixDatagram> {
    let (parent, child) = channel()?;
    sys::intercept(command, child);
    Ok(parent)
}
