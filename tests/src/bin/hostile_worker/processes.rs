//! Attacks on the processes of the broker and the launcher.

use std::fs;
use std::io;

use crate::attack::{Attack, Outcome, Word, address, all_refused, call, refused};

pub const ATTACKS: &[Attack] = &[
    Attack { name: "trace-broker", attempt: || trace(broker()) },
    Attack { name: "trace-launcher", attempt: || trace(launcher()) },
    Attack { name: "read-memory-of-broker", attempt: || memory(broker()) },
    Attack { name: "read-memory-of-launcher", attempt: || memory(launcher()) },
    Attack { name: "proc-of-broker", attempt: || proc(broker()) },
    Attack { name: "proc-of-launcher", attempt: || proc(launcher()) },
    Attack { name: "proc-of-process-1", attempt: || proc(1) },
    Attack { name: "descriptors-of-broker", attempt: || take_descriptors(broker()) },
    Attack { name: "descriptors-of-launcher", attempt: || take_descriptors(launcher()) },
    Attack { name: "namespaces-of-broker", attempt: enter_namespaces },
    Attack { name: "signal-broker", attempt: || signal(broker()) },
    Attack { name: "signal-launcher", attempt: signal_launcher },
    Attack { name: "limits-of-broker", attempt: || limits(broker()) },
    Attack { name: "limits-of-launcher", attempt: limits_of_launcher },
    Attack { name: "scheduling-of-broker", attempt: scheduling_of_broker },
    Attack { name: "write-sysctl", attempt: write_sysctl },
    Attack { name: "write-own-program", attempt: write_own_program },
];

/// The broker's process id: the broker created the channel, so the kernel reports it as the peer.
fn broker() -> Word {
    let channel: i32 = std::env::var("PORTREEVE_CHANNEL").unwrap().parse().unwrap();
    // SAFETY: getsockopt writes only to the structure and its length.
    let peer = unsafe {
        let mut peer: libc::ucred = std::mem::zeroed();
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        let to = (&raw mut peer).cast();
        assert_eq!(libc::getsockopt(channel, libc::SOL_SOCKET, libc::SO_PEERCRED, to, &raw mut length), 0);
        peer
    };
    Word::from(peer.pid)
}

/// The launcher's process id: an attack runs in a child of the worker, which is a child of the launcher.
fn launcher() -> Word {
    let stat = fs::read_to_string(format!("/proc/{}/stat", std::os::unix::process::parent_id())).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn trace(process: Word) -> Outcome {
    all_refused([
        ("seize".to_owned(), call(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), process, 0, 0])),
        ("attach".to_owned(), call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), process, 0, 0])),
    ])
}

fn memory(process: Word) -> Outcome {
    let mut byte = 0_u8;
    let own = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let arguments = [process, address(&own), 1, address(&own), 1, 0];
    all_refused([
        ("read".to_owned(), call(libc::SYS_process_vm_readv, arguments)),
        ("write".to_owned(), call(libc::SYS_process_vm_writev, arguments)),
    ])
}

fn proc(process: Word) -> Outcome {
    let open = |name: &str| {
        let path = format!("/proc/{process}/{name}");
        (name.to_owned(), fs::File::open(path).map(|_| ()))
    };
    let list = |name: &str| {
        let path = format!("/proc/{process}/{name}");
        (name.to_owned(), fs::read_dir(path).map(|_| ()))
    };
    let files = ["mem", "environ", "auxv", "pagemap", "root/etc/shadow", "cwd/etc/shadow", "exe", "ns/mnt"];
    all_refused(files.map(open).into_iter().chain(["fd", "root/", "map_files"].map(list)))
}

fn take_descriptors(process: Word) -> Outcome {
    let handle = match call(libc::SYS_pidfd_open, [process, 0]) {
        Ok(handle) => handle,
        Err(error) => return refused::<()>(Err(error)),
    };
    all_refused(
        (0..16)
            .map(|number| (format!("descriptor {number}"), call(libc::SYS_pidfd_getfd, [handle, number, 0]))),
    )
}

fn enter_namespaces() -> Outcome {
    let handle = call(libc::SYS_pidfd_open, [broker(), 0]).unwrap();
    let kinds = [("mount", libc::CLONE_NEWNS), ("net", libc::CLONE_NEWNET), ("pid", libc::CLONE_NEWPID)];
    all_refused(
        kinds.map(|(name, flag)| (name.to_owned(), call(libc::SYS_setns, [handle, Word::from(flag)]))),
    )
}

fn signal(process: Word) -> Outcome {
    let queued = [0_u32; 32];
    all_refused([
        ("kill".to_owned(), call(libc::SYS_kill, [process, libc::SIGKILL.into()])),
        ("tgkill".to_owned(), call(libc::SYS_tgkill, [process, process, libc::SIGSTOP.into()])),
        (
            "sigqueue".to_owned(),
            call(libc::SYS_rt_sigqueueinfo, [process, libc::SIGTERM.into(), address(&queued)]),
        ),
    ])
}

/// Without Landlock's signal scope the kernel allows it: the launcher has the worker's user id.
fn signal_launcher() -> Outcome {
    match call(libc::SYS_kill, [launcher(), 0]) {
        Ok(_) => Outcome::Allowed("the launcher has the worker's user id".to_owned()),
        Err(error) => Outcome::Blocked(error.to_string()),
    }
}

/// Reads a limit: who may do that may set it.
fn limits_of_launcher() -> Outcome {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let old = (&raw mut limits).addr() as Word;
    match call(libc::SYS_prlimit64, [launcher(), Word::from(libc::RLIMIT_NOFILE), 0, old]) {
        Ok(_) => Outcome::Allowed("the launcher has the worker's user id".to_owned()),
        Err(error) => Outcome::Blocked(error.to_string()),
    }
}

fn limits(process: Word) -> Outcome {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let resource = Word::from(libc::RLIMIT_NOFILE);
    refused(call(libc::SYS_prlimit64, [process, resource, address(&none), 0]))
}

fn scheduling_of_broker() -> Outcome {
    let idle: io::Result<Word> = call(libc::SYS_setpriority, [0, broker(), 19]);
    let one = [1_u64];
    let affinity = call(libc::SYS_sched_setaffinity, [broker(), 8, address(&one)]);
    all_refused([("nice".to_owned(), idle), ("affinity".to_owned(), affinity)])
}

fn write_sysctl() -> Outcome {
    let names = ["kernel/core_pattern", "kernel/modprobe", "net/ipv4/ip_unprivileged_port_start"];
    all_refused(names.map(|name| {
        let path = format!("/proc/sys/{name}");
        (name.to_owned(), fs::File::options().write(true).open(path).map(|_| ()))
    }))
}

fn write_own_program() -> Outcome {
    refused(fs::File::options().write(true).open("/hostile_worker"))
}
