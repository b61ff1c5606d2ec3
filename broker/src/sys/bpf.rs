//! Socket filters: classic BPF programs, instruction by instruction.
//!
//! Sources: socket(7), Documentation/networking/filter.rst of the kernel, and its include/uapi/linux/filter.h and
//! bpf_common.h.

use std::os::fd::AsFd;

use libc::sock_filter;

use super::sockopt;

/// One instruction of a classic BPF program.
pub type Instruction = sock_filter;

/// BPF_LD | BPF_W | BPF_ABS: A = the 32-bit number at this offset, in network byte order.
pub const fn load_word(offset: u32) -> Instruction {
    instruction(0x20, 0, 0, offset)
}

/// BPF_LD | BPF_H | BPF_ABS: A = the 16-bit number at this offset, in network byte order.
pub const fn load_half(offset: u32) -> Instruction {
    instruction(0x28, 0, 0, offset)
}

/// BPF_LD | BPF_B | BPF_ABS: A = the byte at this offset.
pub const fn load_byte(offset: u32) -> Instruction {
    instruction(0x30, 0, 0, offset)
}

/// BPF_LD | BPF_B | BPF_IND: A = the byte at X plus this offset.
pub const fn load_byte_at_x(offset: u32) -> Instruction {
    instruction(0x50, 0, 0, offset)
}

/// BPF_LD | BPF_IMM: A = this number.
pub const fn load_constant(number: u32) -> Instruction {
    instruction(0x00, 0, 0, number)
}

/// BPF_LDX | BPF_IMM: X = this number.
pub const fn load_constant_to_x(number: u32) -> Instruction {
    instruction(0x01, 0, 0, number)
}

/// BPF_MISC | BPF_TAX: X = A.
pub const fn copy_a_to_x() -> Instruction {
    instruction(0x07, 0, 0, 0)
}

/// BPF_ALU | BPF_AND | BPF_K: A = A & this mask.
pub const fn and(mask: u32) -> Instruction {
    instruction(0x54, 0, 0, mask)
}

/// BPF_JMP | BPF_JEQ | BPF_K: skips `skip_if_equal` instructions if A equals this number, and `skip_if_not` otherwise.
pub const fn jump_if_equal(number: u32, skip_if_equal: u8, skip_if_not: u8) -> Instruction {
    instruction(0x15, skip_if_equal, skip_if_not, number)
}

/// BPF_RET | BPF_K: keeps at most this number of bytes of the packet.
pub const fn keep(bytes: u32) -> Instruction {
    instruction(0x06, 0, 0, bytes)
}

/// BPF_RET | BPF_K: keeps the whole packet.
pub const KEEP_PACKET: Instruction = keep(u32::MAX);
/// BPF_RET | BPF_K: drops the packet.
pub const DROP_PACKET: Instruction = keep(0);

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    sock_filter { code, jt, jf, k }
}

/// Attaches a classic program to a socket, and replaces any earlier filter.
///
/// # Capabilities
/// None on most kernels; some require CAP_NET_ADMIN. See [`sockopt::attach_filter`].
///
/// # Errors
/// EINVAL for an invalid program; EPERM if the socket's filter is locked.
pub fn attach(socket: impl AsFd, program: &mut [Instruction]) -> nix::Result<()> {
    sockopt::attach_filter(socket, program)
}

/// Attaches a classic program that drops every packet.
///
/// # Capabilities
/// See [`attach`].
///
/// # Errors
/// See [`attach`].
pub fn attach_drop_all(socket: impl AsFd) -> nix::Result<()> {
    attach(socket, &mut [DROP_PACKET])
}

/// Attaches to a TCP listener a classic program that drops the first packet of each new connection (SYN without ACK) and
/// nothing else. The filter of a listening socket sees packets from their TCP header on.
///
/// # Capabilities
/// See [`attach`].
///
/// # Errors
/// See [`attach`].
pub fn attach_drop_syn(socket: impl AsFd) -> nix::Result<()> {
    const FLAGS_OFFSET: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let mut program =
        [load_byte(FLAGS_OFFSET), and(SYN | ACK), jump_if_equal(SYN, 0, 1), DROP_PACKET, KEEP_PACKET];
    attach(socket, &mut program)
}
