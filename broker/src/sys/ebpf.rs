//! eBPF: programs that filter the packets of a socket, and a map that this process shares with them as memory.
//!
//! Sources: bpf(2), Documentation/bpf/standardization/instruction-set.rst of the kernel, and its
//! include/uapi/linux/bpf.h.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

/// The licence that the kernel is told. No helper function in use is for GPL programs only.
const LICENSE: &std::ffi::CStr = c"Apache-2.0";

/// A register: r0 to r9.
pub type Register = u8;

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    opcode: u8,
    /// The destination in the lower four bits, the source in the upper ones, on a little-endian machine.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A place in a program to which jumps lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// A program, built instruction by instruction. Jumps lead forward only.
#[derive(Debug, Default)]
pub struct Program {
    instructions: Vec<Instruction>,
    /// The jumps to each label.
    jumps: Vec<Vec<usize>>,
}

/// A helper function of the kernel, by its number in `enum bpf_func_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    /// bpf_get_socket_cookie: r1 is the context of a socket filter. Linux 4.12.
    GetSocketCookie = 46,
}

impl Program {
    fn push(&mut self, opcode: u8, destination: Register, source: Register, offset: i16, immediate: i32) {
        let registers = match cfg!(target_endian = "little") {
            true => source << 4 | destination,
            false => destination << 4 | source,
        };
        self.instructions.push(Instruction { opcode, registers, offset, immediate });
    }

    /// A label that is not placed yet.
    pub fn label(&mut self) -> Label {
        self.jumps.push(Vec::new());
        Label(self.jumps.len() - 1)
    }

    /// Places a label before the next instruction.
    pub fn place(&mut self, label: Label) {
        let here = self.instructions.len();
        for at in self.jumps.get_mut(label.0).map(std::mem::take).unwrap_or_default() {
            let offset = i16::try_from(here - at - 1).unwrap_or(i16::MAX);
            self.instructions.get_mut(at).into_iter().for_each(|jump| jump.offset = offset);
        }
    }

    fn jump(&mut self, opcode: u8, destination: Register, source: Register, immediate: i32, to: Label) {
        let here = self.instructions.len();
        self.jumps.get_mut(to.0).into_iter().for_each(|jumps| jumps.push(here));
        self.push(opcode, destination, source, 0, immediate);
    }

    /// BPF_ALU64 | BPF_MOV | BPF_X: destination = source.
    pub fn copy(&mut self, destination: Register, source: Register) {
        self.push(0xbf, destination, source, 0, 0);
    }

    /// BPF_ALU | BPF_MOV | BPF_K: destination = the 32-bit number, zero-extended.
    pub fn set(&mut self, destination: Register, number: u32) {
        self.push(0xb4, destination, 0, 0, number.cast_signed());
    }

    /// BPF_LD | BPF_IMM | BPF_DW: destination = the 64-bit number.
    pub fn set_wide(&mut self, destination: Register, number: u64) {
        self.wide(destination, 0, number);
    }

    /// BPF_LD | BPF_IMM | BPF_DW with BPF_PSEUDO_MAP_VALUE: destination = the address of the first value of a map. Linux
    /// 5.2.
    pub fn set_map_value(&mut self, destination: Register, map: RawFd) {
        const BPF_PSEUDO_MAP_VALUE: Register = 2;
        self.wide(destination, BPF_PSEUDO_MAP_VALUE, u64::from(map.cast_unsigned()));
    }

    fn wide(&mut self, destination: Register, source: Register, number: u64) {
        let [low, high] = [number as u32, (number >> 32) as u32];
        self.push(0x18, destination, source, 0, low.cast_signed());
        self.push(0, 0, 0, 0, high.cast_signed());
    }

    /// BPF_ALU64 | BPF_ADD | BPF_X: destination += source.
    pub fn add(&mut self, destination: Register, source: Register) {
        self.push(0x0f, destination, source, 0, 0);
    }

    /// BPF_ALU64 | BPF_MUL | BPF_X: destination *= source.
    pub fn multiply(&mut self, destination: Register, source: Register) {
        self.push(0x2f, destination, source, 0, 0);
    }

    /// BPF_ALU64 | BPF_OR | BPF_X: destination |= source.
    pub fn or(&mut self, destination: Register, source: Register) {
        self.push(0x4f, destination, source, 0, 0);
    }

    /// BPF_ALU64 | BPF_AND | BPF_K: destination &= the mask.
    pub fn and(&mut self, destination: Register, mask: i32) {
        self.push(0x57, destination, 0, 0, mask);
    }

    /// BPF_ALU64 | BPF_RSH | BPF_K: destination >>= bits.
    pub fn shift_right(&mut self, destination: Register, bits: u8) {
        self.push(0x77, destination, 0, 0, bits.into());
    }

    /// BPF_ALU64 | BPF_LSH | BPF_K: destination <<= bits.
    pub fn shift_left(&mut self, destination: Register, bits: u8) {
        self.push(0x67, destination, 0, 0, bits.into());
    }

    /// BPF_LDX | BPF_MEM | BPF_DW: destination = the 64-bit number at address + offset.
    pub fn load_wide(&mut self, destination: Register, address: Register, offset: i16) {
        self.push(0x79, destination, address, offset, 0);
    }

    /// BPF_LDX | BPF_MEM | BPF_W: destination = the 32-bit number at address + offset.
    pub fn load_word(&mut self, destination: Register, address: Register, offset: i16) {
        self.push(0x61, destination, address, offset, 0);
    }

    /// BPF_LD | BPF_ABS | BPF_B: r0 = the byte of the packet at this offset. The context must be in r6; r1 to r5 are lost.
    /// A packet that is too short is dropped.
    pub fn load_packet_byte(&mut self, offset: i32) {
        self.push(0x30, 0, 0, 0, offset);
    }

    /// BPF_JMP | BPF_CALL: r0 = the helper's result; r1 to r5 are lost.
    pub fn call(&mut self, helper: Helper) {
        self.push(0x85, 0, 0, 0, helper as i32);
    }

    /// BPF_JMP | BPF_JA: jumps.
    pub fn jump_always(&mut self, to: Label) {
        self.jump(0x05, 0, 0, 0, to);
    }

    /// BPF_JMP | BPF_JEQ | BPF_K: jumps if the register has this value.
    pub fn jump_if_value(&mut self, register: Register, value: i32, to: Label) {
        self.jump(0x15, register, 0, value, to);
    }

    /// BPF_JMP | BPF_JEQ | BPF_X: jumps if two registers are equal.
    pub fn jump_if_equal(&mut self, one: Register, other: Register, to: Label) {
        self.jump(0x1d, one, other, 0, to);
    }

    /// BPF_JMP | BPF_EXIT: the result is r0, for a socket filter the number of bytes to keep.
    pub fn exit(&mut self) {
        self.push(0x95, 0, 0, 0, 0);
    }

    /// Loads the program as a socket filter, which [`super::sockopt::attach_bpf`] attaches. See bpf(2), Linux 3.18.
    ///
    /// # Capabilities
    /// CAP_BPF (CAP_SYS_ADMIN before Linux 5.8).
    ///
    /// # Errors
    /// EPERM without the capability; EACCES or EINVAL for a program that this kernel does not accept; ENOSYS if the
    /// kernel is built without CONFIG_BPF_SYSCALL.
    pub fn load(&self) -> nix::Result<OwnedFd> {
        const BPF_PROG_LOAD: libc::c_long = 5;
        const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
        let attributes = LoadAttributes {
            program_type: BPF_PROG_TYPE_SOCKET_FILTER,
            instruction_count: u32::try_from(self.instructions.len()).map_err(|_| Errno::E2BIG)?,
            instructions: self.instructions.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buffer: 0,
            kernel_version: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads the attributes, whose size is passed, and through them the instructions and the
        // license, all of which live until the call returns; it writes to none of them.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>())
        };
        owned(result)
    }
}

/// Takes ownership of the descriptor that bpf(2) returned.
fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let number = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the call has just created this descriptor, close-on-exec, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The beginning of the kernel's `union bpf_attr` as BPF_PROG_LOAD reads it. The kernel treats omitted fields as zero.
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

/// The same as BPF_MAP_CREATE reads it.
#[repr(C)]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// The same as BPF_OBJ_GET_INFO_BY_FD reads it.
#[repr(C)]
struct InfoAttributes {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// The beginning of the kernel's `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    map_type: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// A map with one value, an array of 64-bit words. The programs that use it and the processes that map it share the
/// memory. Children of this process, which have other users, do not inherit the mapping (MADV_DONTFORK, madvise(2)).
#[derive(Debug)]
pub struct SharedWords {
    map: OwnedFd,
    address: NonNull<AtomicU64>,
    count: usize,
}

impl SharedWords {
    /// Creates a map with this number of words, all of them 0. See bpf(2), Linux 5.5 for BPF_F_MMAPABLE.
    ///
    /// # Capabilities
    /// CAP_BPF (CAP_SYS_ADMIN before Linux 5.8).
    ///
    /// # Errors
    /// EPERM without the capability, or before Linux 5.11 if RLIMIT_MEMLOCK is too low; EINVAL before Linux 5.5; ENOSYS
    /// without CONFIG_BPF_SYSCALL; ENOMEM.
    pub fn create(count: usize) -> nix::Result<Self> {
        const BPF_MAP_CREATE: libc::c_long = 0;
        let attributes = MapAttributes {
            map_type: BPF_MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: u32::try_from(count * size_of::<u64>()).map_err(|_| Errno::E2BIG)?,
            max_entries: 1,
            flags: BPF_F_MMAPABLE,
        };
        // SAFETY: the kernel reads the attributes, whose size is passed and which live until the call returns.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attributes, size_of::<MapAttributes>())
        };
        Self::mapped(owned(result)?, count)
    }

    /// Maps the memory of a map that another process created with [`SharedWords::create`].
    ///
    /// # Capabilities
    /// None if the descriptor is open for reading and writing; before Linux 5.19, CAP_BPF where
    /// kernel.unprivileged_bpf_disabled is set.
    ///
    /// # Errors
    /// EINVAL if the descriptor is no such map.
    pub fn open(map: OwnedFd) -> nix::Result<Self> {
        const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
        let mut info = MapInfo::default();
        let attributes = InfoAttributes {
            descriptor: map.as_raw_fd().cast_unsigned(),
            length: u32::try_from(size_of::<MapInfo>()).map_err(|_| Errno::EINVAL)?,
            info: &raw mut info as u64,
        };
        // SAFETY: the kernel reads the attributes, whose size is passed, and writes at most `length` bytes to `info`,
        // which has that many, lives until the call returns, and for which every bit pattern is valid.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_OBJ_GET_INFO_BY_FD,
                &raw const attributes,
                size_of::<InfoAttributes>(),
            )
        };
        Errno::result(result)?;
        let is_words = info.map_type == BPF_MAP_TYPE_ARRAY
            && info.key_size == 4
            && info.max_entries == 1
            && info.flags == BPF_F_MMAPABLE
            && info.value_size > 0
            && (info.value_size as usize).is_multiple_of(size_of::<u64>());
        match is_words {
            true => Self::mapped(map, info.value_size as usize / size_of::<u64>()),
            false => Err(Errno::EINVAL),
        }
    }

    fn mapped(map: OwnedFd, count: usize) -> nix::Result<Self> {
        let length = NonZeroUsize::new(count * size_of::<u64>()).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses an unused address, so no memory in use is replaced. The map's size never changes, so
        // every page of the mapping exists as long as the mapping.
        let address = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, map.as_fd(), 0) }?;
        let words = Self { map, address: address.cast(), count };
        // SAFETY: this is the whole mapping. The advice changes what a child of this process has, not this process.
        unsafe { madvise(address, length.get(), MmapAdvise::MADV_DONTFORK) }?;
        Ok(words)
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, has `count` words, and lives as long as `self`. Others change the memory
        // only while this process regards it as atomic, and every bit pattern is valid.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.count) }
    }

    /// The map.
    pub fn map(&self) -> &OwnedFd {
        &self.map
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping, and no reference to it outlives `self`.
        let _ = unsafe { munmap(self.address.cast(), self.count * size_of::<u64>()) }; // it cannot fail for a mapping
    }
}
