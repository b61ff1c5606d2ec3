//! The socket options that no safe crate sets.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::errno::Errno;

use crate::sys::socket_filter::{self, step};

/// TCP_DEFER_ACCEPT: wake the listener when data has arrived, in seconds. See tcp(7).
pub fn defer_accept(socket: impl AsFd, seconds: u32) -> nix::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &number(seconds))
}

/// TCP_FASTOPEN: how many connections may be pending before their handshake is over. See tcp(7).
pub fn fast_open(socket: impl AsFd, pending: u32) -> nix::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, &number(pending))
}

/// SO_ATTACH_BPF: a loaded program sees each packet before the socket does. See socket(7), Linux 3.19.
pub fn attach_program(socket: impl AsFd, program: &OwnedFd) -> nix::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &program.as_raw_fd())
}

/// SO_ATTACH_FILTER with a classic BPF program that drops every packet. See socket(7).
pub fn attach_drop_everything(socket: impl AsFd) -> nix::Result<()> {
    socket_filter::attach(socket, &mut [step(0x06, 0, 0, 0)]) // BPF_RET | BPF_K, 0 bytes
}

/// SO_ATTACH_FILTER with a classic BPF program that drops what begins a TCP connection and nothing else: of a listening
/// socket the filter sees packets from their TCP header on.
pub fn attach_drop_syn(socket: impl AsFd) -> nix::Result<()> {
    const FLAGS: u32 = 13;
    const SYN_AND_ACK: u32 = 0x12;
    const SYN: u32 = 0x02;
    let mut steps = [
        step(0x30, 0, 0, FLAGS),       // BPF_LD | BPF_B | BPF_ABS
        step(0x54, 0, 0, SYN_AND_ACK), // BPF_ALU | BPF_AND | BPF_K
        step(0x15, 0, 1, SYN),         // BPF_JMP | BPF_JEQ | BPF_K
        step(0x06, 0, 0, 0),           // BPF_RET | BPF_K, 0 bytes
        step(0x06, 0, 0, u32::MAX),
    ];
    socket_filter::attach(socket, &mut steps)
}

/// How many connections wait in a listening TCP socket to be accepted: TCP_INFO's tcpi_unacked, see tcp(7).
pub fn accept_queue(socket: impl AsFd) -> nix::Result<u32> {
    let mut info = [0_u32; 8];
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel writes at most `length` bytes to the array, which has that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // Eight bytes, then tcpi_rto, tcpi_ato, tcpi_snd_mss, tcpi_rcv_mss, tcpi_unacked.
    Errno::result(result).map(|_| info.get(6).copied().unwrap_or_default())
}

/// SO_LOCK_FILTER: the filter can neither be detached nor replaced, by anyone. See socket(7), Linux 3.9.
pub fn lock_filter(socket: impl AsFd) -> nix::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1)
}

fn number(value: u32) -> libc::c_int {
    libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX)
}

fn set<T>(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads `length` bytes at `value`, which is that long and lives until the call returns.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length)
    };
    Errno::result(result).map(drop)
}
