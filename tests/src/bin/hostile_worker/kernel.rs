//! Attacks on the kernel, by calls that few programs need.

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

/// Of all processes on a processor: its own it may count.
fn perf_events() -> Outcome {
    let mut attributes = [0_u32; 32];
    attributes[1] = 128;
    refused(call(libc::SYS_perf_event_open, [address(&attributes), -1, 0, -1, 0]))
}

fn reboot() -> Outcome {
    // To turn Ctrl-Alt-Del off: checked as a reboot is.
    refused(call(libc::SYS_reboot, [0xfee1_dead, 672_274_793, 0, 0]))
}

fn clock() -> Outcome {
    // A time that is not one, so that no kernel sets it.
    let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    refused(call(libc::SYS_clock_settime, [0, address(&never)]))
}

/// A key that whoever started the broker has in the session keyring, which processes inherit.
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
            Outcome::Escaped(format!("the starter's key {key} was found, and reading it gave {read:?}"))
        }
        Err(error) => Outcome::Held(error.to_string()),
    }
}

/// Types at the terminal that the broker was started from, as a descriptor of which it has standard input.
fn terminal() -> Outcome {
    // SAFETY: it only asks.
    if unsafe { libc::isatty(0) } == 0 {
        return Outcome::Escaped("standard input is no terminal, so nothing was tried".to_owned());
    }
    let typing = call(libc::SYS_ioctl, [0, libc::TIOCSTI.cast_signed() as Word, address(b"x")]);
    // A session of its own could take the terminal over, were it nobody's.
    let _leader = call(libc::SYS_setsid, []);
    let taking = call(libc::SYS_ioctl, [0, libc::TIOCSCTTY.cast_signed() as Word, 0]);
    let stealing = call(libc::SYS_ioctl, [0, libc::TIOCSCTTY.cast_signed() as Word, 1]);
    all_refused([
        ("TIOCSTI".to_owned(), typing),
        ("TIOCSCTTY".to_owned(), taking),
        ("TIOCSCTTY by force".to_owned(), stealing),
    ])
}

/// What 0, 1 and 2 are cannot be given to others.
fn standard_descriptors() -> Outcome {
    all_refused((0..3).flat_map(|number| {
        let mode = call(libc::SYS_fchmod, [number, 0o666]);
        let owner = call(libc::SYS_fchown, [number, 65534, 65534]);
        [(format!("mode of {number}"), mode), (format!("owner of {number}"), owner)]
    }))
}

fn io_uring() -> Outcome {
    let mut parameters = [0_u32; 30];
    match call(libc::SYS_io_uring_setup, [1, crate::attack::address_mut(&mut parameters)]) {
        Ok(_) => Outcome::Allowed("a ring works with the worker's own credentials".to_owned()),
        Err(error) => Outcome::Allowed(format!("this kernel refuses it: {error}")),
    }
}
