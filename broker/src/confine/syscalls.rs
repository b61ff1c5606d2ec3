//! The system calls of a serving broker: each with its purpose and, where useful, a check of its arguments.
//!
//! Promises: data only; [`super::seccomp`] compiles it. Touches nothing. A call that is in no table ends the process.
//! Numbers come from `libc`, so a call that an architecture lacks does not compile there.

use libc::*;

use crate::sys::rlimit::GET_INFO;

/// One allowed call.
pub(super) struct Rule {
    pub(super) number: c_long,
    pub(super) name: &'static str,
    /// Why the broker, or the C library, needs it.
    pub(super) why: &'static str,
    /// The call is allowed, or refused, if all checks of any one alternative hold; without alternatives it always is.
    pub(super) any_of: &'static [&'static [Check]],
}

/// A check of one argument, counted from 0. seccomp(2) cannot examine memory behind pointers.
pub(super) enum Check {
    /// A 32-bit argument has this value.
    Is(u8, i32),
    /// A 32-bit argument has another value.
    IsNot(u8, i32),
    /// A 32-bit argument, masked, has this value.
    Bits { argument: u8, mask: i32, value: i32 },
    /// A 64-bit argument, a pointer or a length, is 0.
    Zero(u8),
    /// The argument is the broker's own process id.
    OwnProcess(u8),
    /// The argument is a process id, but neither the broker's own nor 0, which stands for it.
    OtherProcess(u8),
    /// The argument is this resource of setrlimit(2), and the policy permits limits of it.
    PermittedResource(u8, u32),
}
use Check::{Bits, Is, IsNot, OtherProcess, OwnProcess, PermittedResource, Zero};

/// Builds a table of calls with purpose and alternatives of arguments.
macro_rules! calls {
    ($($(#[$only:meta])* $call:ident: $why:literal $($any_of:expr)?;)*) => {
        &[$($(#[$only])* Rule { number: $call, name: stringify!($call), why: $why, any_of: calls!(@ $($any_of)?) },)*]
    };
    (@) => { &[] };
    (@ $any_of:expr) => { $any_of };
}
pub(super) use calls;

/// No memory can be mapped executable: new code cannot be loaded.
pub(super) const NOT_EXECUTABLE: &[&[Check]] = &[&[Bits { argument: 2, mask: PROT_EXEC, value: 0 }]];

/// MSG_FASTOPEN connects while sending and bypasses Landlock's check of connect(2).
const fn without_fast_open(argument: u8) -> Check {
    Bits { argument, mask: MSG_FASTOPEN, value: 0 }
}

const fn socket_type(value: i32) -> Check {
    // The other bits of the type are SOCK_CLOEXEC and SOCK_NONBLOCK.
    Bits { argument: 1, mask: 0xf, value }
}

/// Calls of every broker.
pub(super) const ALWAYS: &[Rule] = calls! {
    // Waiting: tokio's reactor, and the signals that reach it through a socket pair.
    SYS_epoll_create1: "the reactor";
    SYS_epoll_ctl: "the reactor";
    #[cfg(target_arch = "x86_64")] SYS_epoll_wait: "the reactor";
    SYS_epoll_pwait: "the reactor, on architectures without epoll_wait";
    SYS_eventfd2: "waking the reactor";
    #[cfg(target_arch = "x86_64")] SYS_poll: "waiting for one descriptor";
    SYS_ppoll: "waiting for one descriptor, on architectures without poll";
    SYS_futex: "locks of the standard library";
    SYS_nanosleep: "pausing";
    SYS_clock_nanosleep: "pausing, as glibc does it";
    SYS_clock_gettime: "the time, without a vDSO";
    SYS_restart_syscall: "restarted by the kernel after a stop signal";
    SYS_sched_yield: "a lock that spins";

    // Channels, netlink, packets and the log; all of them are open.
    SYS_read: "eventfd, signals";
    SYS_write: "the log, eventfd, signals";
    SYS_writev: "the log";
    SYS_readv: "channels";
    SYS_pread64: "/proc/self/status, by the descriptor opened before";
    SYS_recvmsg: "channels, netlink";
    SYS_recvfrom: "channels, netlink, packets";
    SYS_sendmsg: "channels with descriptors, netlink" &[&[without_fast_open(2)]];
    SYS_sendto: "channels, netlink, announcements" &[&[without_fast_open(3)]];
    SYS_accept4: "the control socket";
    SYS_close: "descriptors";
    SYS_shutdown: "disabling a listener";
    SYS_getsockname: "which port and address a listener has";
    SYS_getpeername: "tokio, for an accepted connection";
    SYS_getsockopt: "credentials of peers, options of listeners";
    SYS_setsockopt: "options of listeners and netlink; no packet filter tables, no loading of kernel modules" &[
        &[Is(1, SOL_SOCKET)],
        &[Is(1, SOL_NETLINK)],
        &[Is(1, IPPROTO_IP), Is(2, IP_FREEBIND)],
        &[Is(1, IPPROTO_IPV6), Is(2, IPV6_V6ONLY)],
        &[Is(1, IPPROTO_TCP), Is(2, TCP_NODELAY)],
        &[Is(1, IPPROTO_TCP), Is(2, TCP_DEFER_ACCEPT)],
        &[Is(1, IPPROTO_TCP), Is(2, TCP_FASTOPEN)],
    ];
    SYS_socket: "a stream or datagrams: no netlink, no packets, no raw sockets, and no protocol but the default one, \
        for Landlock does not see binds of MPTCP and SCTP" &[
        &[Is(0, AF_UNIX), socket_type(SOCK_STREAM)],
        &[Is(0, AF_UNIX), socket_type(SOCK_SEQPACKET)],
        &[Is(0, AF_UNIX), socket_type(SOCK_DGRAM)],
        &[Is(0, AF_INET), socket_type(SOCK_STREAM), Is(2, 0)],
        &[Is(0, AF_INET), socket_type(SOCK_DGRAM), Is(2, 0)],
        &[Is(0, AF_INET6), socket_type(SOCK_STREAM), Is(2, 0)],
        &[Is(0, AF_INET6), socket_type(SOCK_DGRAM), Is(2, 0)],
    ];
    SYS_socketpair: "tokio's signals" &[&[Is(0, AF_UNIX)]];
    SYS_bind: "listeners";
    SYS_listen: "listeners";
    SYS_fcntl: "duplicating descriptors and their flags; no locks, leases or signals" &[
        &[Is(1, F_DUPFD_CLOEXEC)],
        &[Is(1, F_GETFD)],
        &[Is(1, F_SETFD)],
        &[Is(1, F_GETFL)],
        &[Is(1, F_SETFL)],
    ];

    // Memory, never executable.
    SYS_brk: "the heap";
    SYS_mmap: "the heap" NOT_EXECUTABLE;
    SYS_mprotect: "the heap" NOT_EXECUTABLE;
    SYS_mremap: "the heap";
    SYS_munmap: "the heap";
    SYS_madvise: "the heap, and pages of program files";
    SYS_getrandom: "seeds of hash tables";

    // Signals and the end of the process.
    SYS_rt_sigaction: "tokio's signals, abort";
    SYS_rt_sigprocmask: "abort";
    SYS_rt_sigreturn: "every handled signal";
    SYS_sigaltstack: "the standard library's guard against stack overflow";
    SYS_tgkill: "abort; no signals to other processes" &[&[OwnProcess(0)]];
    SYS_getpid: "abort, the log";
    SYS_gettid: "abort";
    SYS_waitid: "reaping and finding children";
    SYS_exit: "the end";
    SYS_exit_group: "the end";

    // Reading this process's credentials for verification; nothing is set.
    SYS_capget: "verifying";
    SYS_prctl: "verifying" &[
        &[Is(0, PR_CAPBSET_READ)],
        &[Is(0, PR_GET_SECUREBITS)],
        &[Is(0, PR_GET_NO_NEW_PRIVS)],
        &[Is(0, PR_GET_DUMPABLE)],
        &[Is(0, PR_CAP_AMBIENT), Is(1, PR_CAP_AMBIENT_IS_SET)],
    ];
    SYS_getuid: "verifying";
    SYS_geteuid: "verifying";
    SYS_getgid: "verifying";
    SYS_getegid: "verifying";
};

/// Calls of a broker that binds Unix sockets at run time, in directories that it keeps open.
pub(super) const SOCKET_FILES: &[Rule] = calls! {
    SYS_fchdir: "entering the directory: bind takes no descriptor";
    SYS_chdir: "back to the empty root";
    SYS_umask: "the mode of a new socket file";
    SYS_newfstatat: "whether the file is still the one that the broker created";
    SYS_unlinkat: "removing it" &[&[Is(2, 0)]];
};

/// Setting a limit of this resource, for another process.
const fn limit(resource: u32) -> [Check; 2] {
    [PermittedResource(1, resource), OtherProcess(0)]
}

/// For a broker that sets resource limits of peers. The process id is an argument that cannot be checked in advance.
pub(super) const LIMITS: &[Rule] = calls! {
    SYS_prlimit64: "a peer's limits: of the resources that the policy permits, and not the broker's own" &[
        &[Zero(2)],
        &limit(0), &limit(1), &limit(2), &limit(3), &limit(4), &limit(5), &limit(6), &limit(7),
        &limit(8), &limit(9), &limit(10), &limit(11), &limit(12), &limit(13), &limit(14), &limit(15),
    ];
    SYS_ioctl: "which interface has a name or number; the standard library's non-blocking mode; the user of a peer's \
        process" &[
        &[Is(1, SIOCGIFINDEX as i32)],
        &[Is(1, SIOCGIFNAME as i32)],
        &[Is(1, FIONBIO as i32)],
        &[Is(1, GET_INFO as i32)],
    ];
};
/// For a broker that does not.
pub(super) const NO_LIMITS: &[Rule] = calls! {
    SYS_prlimit64: "reading a limit, as getrlimit does" &[&[Zero(2)]];
    SYS_ioctl: "which interface has a name or number; the standard library's non-blocking mode" &[
        &[Is(1, SIOCGIFINDEX as i32)],
        &[Is(1, SIOCGIFNAME as i32)],
        &[Is(1, FIONBIO as i32)],
    ];
};

/// Calls that the C library may make on its own and can do without: they fail with EACCES.
///
/// Every other call ends the process: an attacker cannot try twice, and the operator notices.
pub(super) const REFUSED: &[Rule] = calls! {
    #[cfg(target_arch = "x86_64")] SYS_open: "files of locale, time zone or processor count";
    SYS_openat: "files of locale, time zone or processor count";
    #[cfg(target_arch = "x86_64")] SYS_access: "files of locale or time zone";
    SYS_faccessat: "files of locale or time zone";
    #[cfg(target_arch = "x86_64")] SYS_stat: "files of locale or time zone";
    SYS_fstat: "the type of a descriptor that stdio writes to";
    SYS_statx: "the standard library's metadata";
    #[cfg(target_arch = "x86_64")] SYS_readlink: "a backtrace's own executable";
    SYS_readlinkat: "a backtrace's own executable";
    SYS_getcwd: "a backtrace's relative paths";
    // With an address of two bytes, connect(2) can only disconnect a socket, as a revoked UDP socket needs it.
    SYS_connect: "the name service's cache, the system log" &[&[IsNot(2, size_of::<sa_family_t>() as i32)]];
    SYS_sched_getaffinity: "the processor count of malloc";
    SYS_uname: "the kernel version, for the C library";
    SYS_sysinfo: "the memory size of qsort";
};

/// Also refused if no Unix sockets are bound.
pub(super) const REFUSED_WITHOUT_SOCKET_FILES: &[Rule] = calls! {
    SYS_newfstatat: "files of locale or time zone";
};
