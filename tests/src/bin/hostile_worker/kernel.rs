//! Attacks on the kernel, by system calls that few programs need.

use std::io;

use crate::attack::{Attack, Outcome, Word, address, all_refused, call, refused};

pub const ATTACKS: &[Attack] = &[
    Attack { name: "kernel-module", attempt: || refused(call(libc::SYS_init_module, [0, 0, address(c"")])) },
    Attack { name: "tracing-program", attempt: tracing_program },
    Attack { name: "perf-events", attempt: perf_events },
    Attack { name: "reboot", attempt: reboot },
    Attack { name: "kernel-image", attempt: || refused(call(libc::SYS_kexec_load, [0, 0, 0, 0])) },
    Attack { name: "swap", attempt: || refused(call(libc::SYS_swapon, [address(c"/hostile_worker"), 0])) },
    Attack { name: "clock", attempt: clock },
    Attack { name: "host-name", attempt: || refused(call(libc::SYS_sethostname, [address(c"x"), 1])) },
    Attack { name: "kernel-log", attempt: || refused(call(libc::SYS_syslog, [5, 0, 0])) },
    Attack { name: "session-keyring", attempt: session_keyring },
    Attack { name: "terminal", attempt: terminal },
    Attack { name: "standard-descriptors", attempt: standard_descriptors },
    Attack { name: "io-uring", attempt: io_uring },
];

fn tracing_program() -> Outcome {
    const PROG_LOAD: Word = 5;
    const KPROBE: u32 = 2;
    refused(call(libc::SYS_bpf, [PROG_LOAD, address(&[KPROBE, 0]), 8]))
}

/// Opens a counter of all processes on a CPU. A process is allowed to count its own events.
fn perf_events() -> Outcome {
    let mut attributes = [0_u32; 32];
    attributes[1] = 128;
    refused(call(libc::SYS_perf_event_open, [address(&attributes), -1, 0, -1, 0]))
}

fn reboot() -> Outcome {
    // Disables Ctrl-Alt-Del, which needs the same permission as a reboot.
    refused(call(libc::SYS_reboot, [0xfee1_dead, 672_274_793, 0, 0]))
}

fn clock() -> Outcome {
    // An invalid address, so that the clock is not set even if the call is allowed.
    let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    refused(call(libc::SYS_clock_settime, [0, address(&never)]))
}

/// Searches the session keyring, which processes inherit, for a key of the user who started the broker.
fn session_keyring() -> Outcome {
    const SEARCH: Word = 10;
    const READ: Word = 11;
    const SESSION: Word = -3;
    let found = call(libc::SYS_keyctl, [SEARCH, SESSION, address(c"user"), address(c"portreeve-test"), 0]);
    match found {
        Ok(key) => {
            let mut secret = [0_u8; 16];
            let read: io::Result<Word> =
                call(libc::SYS_keyctl, [READ, key, crate::attack::address_mut(&mut secret), 16]);
            Outcome::Escaped(format!("found key {key} of the invoking user; reading it gave {read:?}"))
        }
        Err(error) => Outcome::Blocked(error.to_string()),
    }
}

/// Injects input into the terminal that the broker was started from, by standard input.
fn terminal() -> Outcome {
    // SAFETY: isatty accepts any descriptor.
    if unsafe { libc::isatty(0) } == 0 {
        return Outcome::Escaped("not tried: standard input is not a terminal".to_owned());
    }
    let typing = call(libc::SYS_ioctl, [0, libc::TIOCSTI.cast_signed() as Word, address(b"x")]);
    // The leader of a new session could acquire the terminal if it belonged to no session.
    let _ = call(libc::SYS_setsid, []); // if this fails, so do the next calls
    let taking = call(libc::SYS_ioctl, [0, libc::TIOCSCTTY.cast_signed() as Word, 0]);
    let stealing = call(libc::SYS_ioctl, [0, libc::TIOCSCTTY.cast_signed() as Word, 1]);
    all_refused([
        ("TIOCSTI".to_owned(), typing),
        ("TIOCSCTTY".to_owned(), taking),
        ("TIOCSCTTY by force".to_owned(), stealing),
    ])
}

/// Changes the mode and the owner of the files behind descriptors 0, 1 and 2.
fn standard_descriptors() -> Outcome {
    all_refused((0..3).flat_map(|number| {
        let mode = call(libc::SYS_fchmod, [number, 0o666]);
        // SAFETY: geteuid and getegid have no preconditions.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        let owner = call(libc::SYS_fchown, [number, user.into(), group.into()]);
        [(format!("mode of {number}"), mode), (format!("owner of {number}"), owner)]
    }))
}

fn io_uring() -> Outcome {
    let mut parameters = [0_u32; 30];
    match call(libc::SYS_io_uring_setup, [1, crate::attack::address_mut(&mut parameters)]) {
        Ok(_) => Outcome::Allowed("a ring uses the worker's own credentials".to_owned()),
        Err(error) => Outcome::Allowed(format!("this kernel denies it: {error}")),
    }
}
