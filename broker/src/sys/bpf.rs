//! A socket filter that keeps nothing of any packet, as an eBPF program: `r0 = 0; exit`. See bpf(2).

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;

/// The beginning of the kernel's `union bpf_attr` as BPF_PROG_LOAD reads it (include/uapi/linux/bpf.h); what
/// follows is zero when it is left out.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
/// `r0 = 0` (BPF_ALU64 | BPF_MOV | BPF_K) and `exit` (BPF_JMP | BPF_EXIT): the filter keeps 0 bytes.
const INSTRUCTIONS: [u64; 2] =
    [u64::from_le_bytes([0xb7, 0, 0, 0, 0, 0, 0, 0]), u64::from_le_bytes([0x95, 0, 0, 0, 0, 0, 0, 0])];

/// Loads the program. Needs CAP_BPF (Linux 5.8) or, before that and where unprivileged programs are allowed,
/// nothing.
pub fn load() -> nix::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_SOCKET_FILTER,
        instruction_count: 2,
        instructions: INSTRUCTIONS.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes, whose size is told, and through them the instructions and the
    // license, all of which live until the call returns; it writes to none of them.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>())
    };
    let number = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the call has just made this descriptor, close-on-exec, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
