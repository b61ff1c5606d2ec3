//! The system calls of a broker that serves: each with what it is for, and a check of its arguments where that
//! keeps out what the call could do besides.
//!
//! Promises: data only; [`super::seccomp`] compiles it. Touches nothing. A call that is on neither list ends the
//! process. Numbers come from `libc`, so a call that an architecture lacks does not compile there.

use libc::*;

/// One allowed call.
pub(super) struct Rule {
    pub(super) number: c_long,
    pub(super) name: &'static str,
    /// What the broker, or the C library under it, needs it for.
    pub(super) why: &'static str,
    /// The call passes if all checks of any one alternative hold; without alternatives it always passes.
    pub(super) any_of: &'static [&'static [Check]],
}

/// One check of one argument, counted from 0. Pointers are never looked behind: seccomp(2) cannot.
pub(super) enum Check {
    /// A 32-bit argument is this.
    Is(u8, i32),
    /// A 32-bit argument has this value in the bits of this mask.
    Bits { argument: u8, mask: i32, value: i32 },
    /// A 64-bit argument, a pointer or a length, is 0.
    Zero(u8),
    /// The argument is the broker's own process id.
    OwnProcess(u8),
}
use Check::{Bits, Is, OwnProcess, Zero};

/// A table of calls: what each is for, and the alternatives of its arguments.
macro_rules! calls {
    ($($(#[$only:meta])* $call:ident: $why:literal $($any_of:expr)?;)*) => {
        &[$($(#[$only])* Rule { number: $call, name: stringify!($call), why: $why, any_of: calls!(@ $($any_of)?) },)*]
    };
    (@) => { &[] };
    (@ $any_of:expr) => { $any_of };
}
pub(super) use calls;

/// Nothing mapped may be run: new code cannot be brought in.
pub(super) const NOT_EXECUTABLE: &[&[Check]] = &[&[Bits { argument: 2, mask: PROT_EXEC, value: 0 }]];

/// Fast open connects in the act of sending, past Landlock's check of connect(2).
const fn without_fast_open(argument: u8) -> Check {
    Bits { argument, mask: MSG_FASTOPEN, value: 0 }
}

const fn socket_type(value: i32) -> Check {
    // The rest of the type are SOCK_CLOEXEC and SOCK_NONBLOCK.
    Bits { argument: 1, mask: 0xf, value }
}

/// Calls of every broker.
pub(super) const ALWAYS: &[Rule] = calls! {
    // Waiting: tokio's reactor, and the signals that reach it through a socket pair.
    SYS_epoll_create1: "the reactor";
    SYS_epoll_ctl: "the reactor";
    #[cfg(target_arch = "x86_64")] SYS_epoll_wait: "the reactor";
    SYS_epoll_pwait: "the reactor, where there is no epoll_wait";
    SYS_eventfd2: "waking the reactor";
    #[cfg(target_arch = "x86_64")] SYS_poll: "waiting for one descriptor";
    SYS_ppoll: "waiting for one descriptor, where there is no poll";
    SYS_futex: "locks of the standard library";
    SYS_nanosleep: "pausing";
    SYS_clock_nanosleep: "pausing, as glibc does it";
    SYS_clock_gettime: "the time, where the vDSO has none";
    SYS_restart_syscall: "the kernel's own, after a stop signal";
    SYS_sched_yield: "a lock that spins";

    // Channels, netlink, packets and the log, all of them open by now.
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
    SYS_shutdown: "taking a listener out of service";
    SYS_getsockname: "which port and address a listener has";
    SYS_getpeername: "tokio, of a stream it accepts";
    SYS_getsockopt: "whose a peer is, what a listener has";
    SYS_setsockopt: "options of listeners and netlink; no table of a packet filter, no kernel module by its name" &[
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
    SYS_fcntl: "copies of descriptors and their flags; no locks, leases or signals of a descriptor" &[
        &[Is(1, F_DUPFD_CLOEXEC)],
        &[Is(1, F_GETFD)],
        &[Is(1, F_SETFD)],
        &[Is(1, F_GETFL)],
        &[Is(1, F_SETFL)],
    ];
    SYS_ioctl: "which interface has a name or number; the standard library's non-blocking mode" &[
        &[Is(1, SIOCGIFINDEX as i32)],
        &[Is(1, SIOCGIFNAME as i32)],
        &[Is(1, FIONBIO as i32)],
    ];

    // Memory, never executable.
    SYS_brk: "the heap";
    SYS_mmap: "the heap" NOT_EXECUTABLE;
    SYS_mprotect: "the heap" NOT_EXECUTABLE;
    SYS_mremap: "the heap";
    SYS_munmap: "the heap";
    SYS_madvise: "the heap";
    SYS_getrandom: "seeds of hash tables";

    // Signals, and an end.
    SYS_rt_sigaction: "tokio's signals, abort";
    SYS_rt_sigprocmask: "abort";
    SYS_rt_sigreturn: "every handled signal";
    SYS_sigaltstack: "the standard library's guard against stack overflow";
    SYS_tgkill: "abort; no signal to anyone else" &[&[OwnProcess(0)]];
    SYS_getpid: "abort, the log";
    SYS_gettid: "abort";
    SYS_waitid: "a launcher that died";
    SYS_exit: "the end";
    SYS_exit_group: "the end";

    // Asking what this process holds, to verify it; nothing is set.
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

/// Calls of a broker that binds Unix sockets at run time, in directories that it holds open.
pub(super) const SOCKET_FILES: &[Rule] = calls! {
    SYS_fchdir: "standing in the directory, for bind takes no descriptor";
    SYS_chdir: "back to the empty root";
    SYS_umask: "the socket's mode from its first instant";
    SYS_newfstatat: "whether the file is still the one that was made";
    SYS_unlinkat: "removing it" &[&[Is(2, 0)]];
};

/// What a broker that sets limits of its peers needs, and what one that does not. The process is named by its number, which
/// no check can know.
pub(super) const LIMITS: &[Rule] = calls! { SYS_prlimit64: "a peer's limits"; };
/// See [`LIMITS`].
pub(super) const NO_LIMITS: &[Rule] =
    calls! { SYS_prlimit64: "reading a limit, as getrlimit does" &[&[Zero(2)]]; };

/// Calls that the C library may make by itself, and goes on without: they fail with EACCES.
///
/// Everything else that is not allowed ends the process, which no attacker can try twice and no operator overlooks.
pub(super) const REFUSED: &[Rule] = calls! {
    #[cfg(target_arch = "x86_64")] SYS_open: "files of locale, time zone or processor count";
    SYS_openat: "files of locale, time zone or processor count";
    #[cfg(target_arch = "x86_64")] SYS_access: "files of locale or time zone";
    SYS_faccessat: "files of locale or time zone";
    #[cfg(target_arch = "x86_64")] SYS_stat: "files of locale or time zone";
    SYS_fstat: "the kind of a descriptor that stdio writes to";
    SYS_statx: "the standard library's metadata";
    #[cfg(target_arch = "x86_64")] SYS_readlink: "a backtrace's own executable";
    SYS_readlinkat: "a backtrace's own executable";
    SYS_getcwd: "a backtrace's relative paths";
    SYS_connect: "the name service's cache, the system log";
    SYS_sched_getaffinity: "the processor count of malloc";
    SYS_uname: "the C library, of its kernel";
    SYS_sysinfo: "the memory size of qsort";
};

/// Refused too, where no Unix sockets are bound.
pub(super) const REFUSED_WITHOUT_SOCKET_FILES: &[Rule] = calls! {
    SYS_newfstatat: "files of locale or time zone";
};
