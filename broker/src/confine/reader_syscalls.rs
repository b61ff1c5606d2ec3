//! The system calls of the reader: opening and reading files, and its channel.
//!
//! Promises: data only, like [`super::syscalls`] for the broker. None of the calls creates, changes or removes a file,
//! creates a socket, starts a program or gains a privilege.

use libc::*;

use super::syscalls::Check::{Bits, Is, OwnProcess, Zero};
use super::syscalls::{NOT_EXECUTABLE, Rule, calls};

/// Flags that create or change a file when it is opened.
const WRITING: i32 = O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | O_TMPFILE & !O_DIRECTORY;

/// The allowed calls.
pub(super) const READER: &[Rule] = calls! {
    SYS_openat: "files of the configuration and of the accounts; never for writing" &[
        &[Bits { argument: 2, mask: WRITING, value: 0 }],
    ];
    SYS_statx: "owner and mode of a file";
    SYS_fstat: "owner and mode of a file";
    SYS_newfstatat: "owner and mode of a file";
    SYS_readlinkat: "the symbolic links of a path";
    SYS_getdents64: "the files of a directory";
    SYS_read: "files";
    SYS_pread64: "files";
    SYS_lseek: "files";
    SYS_close: "files";
    SYS_fcntl: "the flags of a descriptor" &[&[Is(1, F_GETFD)], &[Is(1, F_GETFL)]];

    SYS_recvmsg: "the channel";
    SYS_recvfrom: "the channel";
    SYS_sendto: "the channel";
    SYS_write: "a final message on standard error";
    SYS_writev: "a final message on standard error";

    SYS_brk: "the heap";
    SYS_mmap: "the heap" NOT_EXECUTABLE;
    SYS_mprotect: "the heap" NOT_EXECUTABLE;
    SYS_mremap: "the heap";
    SYS_munmap: "the heap";
    SYS_madvise: "the heap, and pages of program files";
    SYS_getrandom: "seeds of hash tables";
    SYS_futex: "locks of the standard library";
    SYS_clock_gettime: "the time, without a vDSO";
    SYS_restart_syscall: "restarted by the kernel after a stop signal";
    SYS_prlimit64: "reading the stack limit" &[&[Zero(2)]];

    SYS_rt_sigaction: "abort";
    SYS_rt_sigprocmask: "abort";
    SYS_rt_sigreturn: "every handled signal";
    SYS_sigaltstack: "the standard library's guard against stack overflow";
    SYS_tgkill: "abort; no signals to other processes" &[&[OwnProcess(0)]];
    SYS_getpid: "abort";
    SYS_gettid: "abort";
    SYS_exit: "the end";
    SYS_exit_group: "the end";
};

/// Calls that the C library may make on its own and can do without.
pub(super) const REFUSED_TO_READER: &[Rule] = calls! {
    #[cfg(target_arch = "x86_64")] SYS_open: "files of locale, time zone or processor count";
    #[cfg(target_arch = "x86_64")] SYS_access: "files of locale or time zone";
    SYS_faccessat: "files of locale or time zone";
    #[cfg(target_arch = "x86_64")] SYS_stat: "files of locale or time zone";
    #[cfg(target_arch = "x86_64")] SYS_readlink: "a backtrace's own executable";
    SYS_getcwd: "a backtrace's relative paths";
    SYS_socket: "the name service's cache, the system log";
    SYS_connect: "the name service's cache, the system log";
    SYS_sched_getaffinity: "the processor count of malloc";
    SYS_uname: "the kernel version, for the C library";
    SYS_sysinfo: "the memory size of qsort";
};
