//! The system calls that no safe crate has: seccomp(2) and the calls of its notifications, another process's memory, and socket
//! options by number.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;

use libc::{
    SECCOMP_ADDFD_FLAG_SETFD, SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    SECCOMP_IOCTL_NOTIF_ADDFD, SECCOMP_IOCTL_NOTIF_ID_VALID, SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND, SECCOMP_SET_MODE_FILTER, SECCOMP_USER_NOTIF_FLAG_CONTINUE, c_int, c_void,
    seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp, sock_filter, sock_fprog, socklen_t,
};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// Installs a filter in this thread. Returns the descriptor of its notifications, and whether a signal can interrupt a call that
/// has been received. It allocates nothing.
pub(crate) fn install_filter(program: &'static [sock_filter]) -> io::Result<(OwnedFd, bool)> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let install = |flags: libc::c_ulong| {
        // SAFETY: `filter` describes a static array of that length, which the kernel only reads.
        let descriptor =
            unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
        match c_int::try_from(descriptor) {
            // SAFETY: seccomp(2) has just returned the descriptor, which nothing else owns.
            Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // With WAIT_KILLABLE_RECV (Linux 5.19) a call that the supervisor has received is interrupted only by a signal that ends the
    // process: otherwise a signal could interrupt a bind that has happened already.
    match install(SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            install(SECCOMP_FILTER_FLAG_NEW_LISTENER).map(|listener| (listener, true))
        }
        done => done.map(|listener| (listener, false)),
    }
}

/// Sends bytes with a descriptor. It allocates nothing.
pub(crate) fn send_descriptor(
    channel: BorrowedFd<'_>,
    packet: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(channel, &[io::IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// A notification. See seccomp_unotify(2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notification {
    pub id: u64,
    /// The thread in the PID namespace of this process; 0 if it is in none of its own or below.
    pub thread: u32,
    pub arguments: [u64; 6],
}

/// Calls ioctl(2) and repeats it when a signal interrupts it.
fn ioctl<T>(descriptor: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<c_int> {
    loop {
        // SAFETY: each request below is called with the structure that it reads and writes, which is valid for both.
        let result = unsafe { libc::ioctl(descriptor.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        match result {
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            result => return Ok(result),
        }
    }
}

/// Receives a notification. It waits if there is none.
pub(crate) fn receive(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // SAFETY: zero is a valid value of each of its fields, which are integers. The kernel demands zeros.
    let mut received: seccomp_notif = unsafe { zeroed() };
    ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &mut received)?;
    Ok(Notification { id: received.id, thread: received.pid, arguments: received.data.args })
}

/// Whether the call of a notification still waits.
pub(crate) fn is_valid(listener: BorrowedFd<'_>, mut id: u64) -> bool {
    ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &mut id).is_ok()
}

/// Lets the call return 0, or an error if `errno` is not 0.
pub(crate) fn reply(listener: BorrowedFd<'_>, id: u64, errno: i32) -> io::Result<()> {
    let mut response = seccomp_notif_resp { id, val: 0, error: errno.saturating_neg(), flags: 0 };
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &mut response).map(drop)
}

/// Lets the kernel carry out the call.
pub(crate) fn pass(listener: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let flags = u32::try_from(SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or(1);
    let mut response = seccomp_notif_resp { id, val: 0, error: 0, flags };
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &mut response).map(drop)
}

/// Puts a file in the place of a descriptor of the process whose call waits.
///
/// SECCOMP_ADDFD_FLAG_SEND would also answer the call, but with the number of the descriptor, and bind(2) returns 0.
pub(crate) fn replace(
    listener: BorrowedFd<'_>,
    id: u64,
    number: u32,
    file: BorrowedFd<'_>,
    close_on_exec: bool,
) -> io::Result<()> {
    let mut add = seccomp_notif_addfd {
        id,
        flags: u32::try_from(SECCOMP_ADDFD_FLAG_SETFD).unwrap_or(1),
        srcfd: file.as_raw_fd().cast_unsigned(),
        newfd: number,
        newfd_flags: if close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
    };
    ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &mut add).map(drop)
}

/// Fails if the kernel has no SECCOMP_IOCTL_NOTIF_ADDFD. It allocates nothing.
pub(crate) fn probe_addfd(listener: BorrowedFd<'_>) -> io::Result<()> {
    // No notification has this id: they begin at a random number and count up.
    match replace(listener, u64::MAX, 0, listener, true) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Reads the memory of another process. Returns the number of bytes, which is lower if the rest is not mapped.
pub(crate) fn read_memory(thread: i32, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let address = usize::try_from(address).map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: buffer.len() };
    // SAFETY: `local` is the buffer, which is valid for writes of its length. The kernel checks the remote address, which is one
    // of the other process.
    let read = unsafe { libc::process_vm_readv(thread, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// The value of a socket option; `None` if this socket does not have it. Returns the length of the value.
pub(crate) fn option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> Option<usize> {
    let mut length = socklen_t::try_from(value.len()).ok()?;
    // SAFETY: the value is valid for writes of `length` bytes, and the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast::<c_void>(),
            &raw mut length,
        )
    };
    (result == 0).then(|| usize::try_from(length).unwrap_or(0).min(value.len()))
}

/// Sets a socket option. A failure is ignored: this socket then keeps the value that it has.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) {
    let length = socklen_t::try_from(value.len()).unwrap_or(0);
    // SAFETY: the value is valid for reads of its length.
    let _ =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast::<c_void>(), length) };
}

/// Makes a file non-blocking if another one is, and blocking if not.
pub(crate) fn copy_nonblocking(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    if let (Ok(from), Ok(old)) = (fcntl_getfl(from), fcntl_getfl(to)) {
        let new = (old - OFlags::NONBLOCK) | (from & OFlags::NONBLOCK);
        let _ = fcntl_setfl(to, new); // cannot fail for a socket
    }
}

/// A new socket.
pub(crate) fn new_socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) accesses no memory.
    let socket = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    match socket {
        // SAFETY: socket(2) has just returned the descriptor, which nothing else owns.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(socket) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a command install the filter in its process before it executes its program. The process gets SIGTERM when the thread
/// that starts it ends, and blocks no signal.
pub(crate) fn intercept(command: &mut std::process::Command, supervisor: OwnedFd) {
    let parent = getpid();
    let before_exec = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        if getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // SAFETY: zero is a valid value, and sigemptyset(3) initializes it in any case.
        let mut none: libc::sigset_t = unsafe { zeroed() };
        // SAFETY: `none` is valid for writes.
        unsafe { libc::sigemptyset(&raw mut none) };
        // SAFETY: `none` is an initialized set, which the kernel only reads.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
        crate::filter::install(supervisor.as_fd())
    };
    // SAFETY: the closure makes system calls only: it allocates no memory and takes no lock. It owns what it uses.
    unsafe { command.pre_exec(before_exec) };
}
