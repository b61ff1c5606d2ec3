//! Socket options that a hostile holder sets on its copy of a lent socket, without a capability. See socket(7).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd as _};

use libc::{c_int, c_void, socklen_t};

/// An instruction of a classic BPF program that accepts each packet: `ret #-1`.
const ACCEPT_ALL: libc::sock_filter = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: u32::MAX };

fn set<T>(socket: impl AsFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as socklen_t;
    let value = std::ptr::from_ref(value).cast::<c_void>();
    // SAFETY: the value outlives the call and has this length; the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option with a number as its value.
pub fn set_number(socket: impl AsFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    set(socket, level, name, &value)
}

/// SO_BINDTODEVICE.
pub fn bind_to_device(socket: impl AsFd, interface: &str) -> io::Result<()> {
    let mut name = [0_u8; 16];
    name.iter_mut().zip(interface.bytes()).for_each(|(to, from)| *to = from);
    set(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &name)
}

/// SO_LOCK_FILTER: the filter of the socket cannot be changed any longer.
pub fn lock_filter(socket: impl AsFd) -> io::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)
}

/// SO_ATTACH_FILTER with a program that accepts each packet.
pub fn accept_every_packet(socket: impl AsFd) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_FILTER)
}

/// SO_ATTACH_REUSEPORT_CBPF with a program that selects the same socket of the group each time.
pub fn select_one_of_group(socket: impl AsFd) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_REUSEPORT_CBPF)
}

fn attach(socket: impl AsFd, name: c_int) -> io::Result<()> {
    let mut program = [ACCEPT_ALL];
    let program = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    set(socket, libc::SOL_SOCKET, name, &program)
}

/// SO_DETACH_FILTER.
pub fn detach_filter(socket: impl AsFd) -> io::Result<()> {
    set_number(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
}

/// connect(2) with AF_UNSPEC, which ends the association of a socket.
pub fn disconnect(socket: impl AsFd) -> io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of::<libc::sockaddr>() as socklen_t;
    // SAFETY: the address outlives the call and has this length; the kernel only reads it.
    let result = unsafe { libc::connect(socket.as_fd().as_raw_fd(), &raw const nowhere, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the kernel send SIGIO about this socket to a process: F_SETOWN and O_ASYNC of fcntl(2).
pub fn signal_process(socket: impl AsFd, pid: u32) -> io::Result<()> {
    let raw = socket.as_fd().as_raw_fd();
    // SAFETY: fcntl reads only its integer arguments.
    let result = unsafe {
        libc::fcntl(raw, libc::F_SETOWN, pid.cast_signed());
        libc::fcntl(raw, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
