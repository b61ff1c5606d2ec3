//! Filters of sockets: small programs by which the kernel throws away what nobody here would read.
//!
//! Promises: what is thrown away is never received, and nothing else of the socket changes. Source: socket(7), and
//! include/uapi/linux/filter.h of the kernel.

use std::os::fd::{AsFd, AsRawFd as _};

use libc::sock_filter;
use nix::errno::Errno;

/// One step of a program: what to do, how many steps to skip where a comparison holds and where not, and its operand.
pub const fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Has the kernel run a program for whatever arrives at a socket, in place of any before.
///
/// # Errors
/// EINVAL for a program that is none.
pub fn attach(socket: impl AsFd, steps: &mut [sock_filter]) -> nix::Result<()> {
    let len = u16::try_from(steps.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of_val(&program)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the program and its steps are valid for the lengths given with them, and only read.
    let result = unsafe {
        let program = (&raw const program).cast();
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            program,
            length,
        )
    };
    Errno::result(result).map(drop)
}
