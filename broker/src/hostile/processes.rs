//! Attacks on other processes, and attempts to start new ones.

use super::Attack;
use super::call::{Word, address, address_mut, call, victim, word};

pub const ATTACKS: &[Attack] = &[
    Attack { name: "run a file", attempt: run_a_file },
    Attack { name: "run code from memory", attempt: run_from_memory },
    Attack { name: "run code to regain capabilities", attempt: run_to_regain_capabilities },
    Attack { name: "fork", attempt: fork },
    Attack { name: "make memory executable", attempt: executable_memory },
    Attack { name: "trace another process", attempt: trace },
    Attack { name: "read another process's memory", attempt: read_memory },
    Attack { name: "take another process's descriptor", attempt: take_descriptor },
    Attack { name: "signal another process", attempt: signal },
    Attack { name: "lower another process's limits", attempt: limit_another },
    Attack { name: "enter another process's network namespace", attempt: enter_network },
];

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

fn run_a_file() -> nix::Result<i64> {
    call(libc::SYS_execve, [address(c"/bin/true"), 0, 0])
}

fn run_from_memory() -> nix::Result<i64> {
    execute(c"done")
}

fn run_to_regain_capabilities() -> nix::Result<i64> {
    execute(c"capabilities")
}

/// Executes an attacker's program, which the test provides as standard input.
fn execute(what: &std::ffi::CStr) -> nix::Result<i64> {
    let memory = call(libc::SYS_memfd_create, [address(c"code"), 0])?;
    let mut buffer = vec![0_u8; 1 << 16];
    let length = Word::try_from(buffer.len()).unwrap_or_default();
    loop {
        let read = call(libc::SYS_read, [0, address_mut(buffer.as_mut_slice()), length])?;
        if read == 0 {
            break;
        }
        call(libc::SYS_write, [memory, address(buffer.as_slice()), read])?;
    }
    let arguments = [c"code".as_ptr(), c"--as-program".as_ptr(), what.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null::<libc::c_char>()];
    let flags = word(libc::AT_EMPTY_PATH);
    call(libc::SYS_execveat, [memory, address(c""), address(&arguments), address(&environment), flags])
}

fn fork() -> nix::Result<i64> {
    let child = call(libc::SYS_clone, [word(libc::SIGCHLD), 0, 0, 0, 0])?;
    if child == 0 {
        // SAFETY: _exit runs no destructors or exit handlers.
        unsafe { libc::_exit(0) }
    }
    Ok(child)
}

fn executable_memory() -> nix::Result<i64> {
    let kind = word(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    call(libc::SYS_mmap, [0, 4096, word(PROTECTION), kind, -1, 0])
}

fn trace() -> nix::Result<i64> {
    call(libc::SYS_ptrace, [Word::from(libc::PTRACE_SEIZE), victim(), 0, 0])
}

fn read_memory() -> nix::Result<i64> {
    let mut byte = 0_u8;
    let local = libc::iovec { iov_base: std::ptr::from_mut(&mut byte).cast(), iov_len: 1 };
    // Any address of the other process: EFAULT for an unmapped one does not count as prevented.
    let remote = libc::iovec { iov_base: std::ptr::from_mut(&mut byte).cast(), iov_len: 1 };
    call(libc::SYS_process_vm_readv, [victim(), address(&local), 1, address(&remote), 1, 0])
}

fn take_descriptor() -> nix::Result<i64> {
    let process = call(libc::SYS_pidfd_open, [victim(), 0])?;
    call(libc::SYS_pidfd_getfd, [process, 0, 0])
}

fn signal() -> nix::Result<i64> {
    // Signal 0 is checked like any other and has no effect.
    call(libc::SYS_kill, [victim(), 0])
}

fn limit_another() -> nix::Result<i64> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let resource = Word::from(libc::RLIMIT_CORE);
    call(libc::SYS_prlimit64, [victim(), resource, address(&none), 0])
}

fn enter_network() -> nix::Result<i64> {
    let process = call(libc::SYS_pidfd_open, [victim(), 0])?;
    call(libc::SYS_setns, [process, word(libc::CLONE_NEWNET)])
}
