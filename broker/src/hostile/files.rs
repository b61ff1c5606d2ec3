//! Attacks on files of the host and in the broker's socket directory.
//!
//! The test's own directory is `/run/host`, and `/run/host/sockets` in it is the one that the broker was given.

use std::ffi::CStr;

use super::Attack;
use super::call::{Word, address, call, word};

pub const ATTACKS: &[Attack] = &[
    Attack { name: "read /etc/shadow", attempt: || open(c"/etc/shadow", libc::O_RDONLY) },
    Attack { name: "read its own program", attempt: || open(c"/proc/self/exe", libc::O_RDONLY) },
    Attack {
        name: "read a file through the root of process 1",
        attempt: || open(c"/proc/1/root/etc/shadow", libc::O_RDONLY),
    },
    Attack { name: "make a file for root's cron", attempt: || open(c"/run/host/cron/job", MAKE) },
    Attack { name: "open a file by its handle", attempt: open_by_handle },
    Attack { name: "mount a file system", attempt: mount },
    Attack { name: "unmount a file system", attempt: unmount },
    Attack { name: "change its root", attempt: change_root },
    Attack { name: "make a file beside the sockets", attempt: || open(c"/run/host/sockets/file", MAKE) },
    Attack { name: "make a device beside the sockets", attempt: make_device },
    Attack { name: "make a link beside the sockets", attempt: make_link },
    Attack { name: "remove another program's socket in its own directory", attempt: remove_socket },
    Attack { name: "remove another program's socket elsewhere", attempt: remove_elsewhere },
];

const HERE: Word = libc::AT_FDCWD as Word;
const MAKE: i32 = libc::O_WRONLY | libc::O_CREAT;

fn open(path: &CStr, flags: i32) -> nix::Result<i64> {
    call(libc::SYS_openat, [HERE, address(path), word(flags), 0o644])
}

fn open_by_handle() -> nix::Result<i64> {
    // struct file_handle: 8 bytes of handle, type 1; standard input names the file system.
    let handle = [8_u32, 1, 2, 0];
    call(libc::SYS_open_by_handle_at, [0, address(&handle), word(libc::O_RDONLY)])
}

fn mount() -> nix::Result<i64> {
    // A type that no kernel has: only the permission check matters.
    let kind = address(c"nonesuch");
    call(libc::SYS_mount, [kind, address(c"/run/host/sockets"), kind, 0, 0])
}

fn unmount() -> nix::Result<i64> {
    call(libc::SYS_umount2, [address(c"/run/host/sockets"), word(libc::MNT_DETACH)])
}

fn change_root() -> nix::Result<i64> {
    call(libc::SYS_chroot, [address(c"/")])
}

fn make_device() -> nix::Result<i64> {
    let mode = Word::from(libc::S_IFCHR | 0o666);
    let null = Word::try_from(libc::makedev(1, 3)).unwrap_or_default();
    call(libc::SYS_mknodat, [HERE, address(c"/run/host/sockets/device"), mode, null])
}

fn make_link() -> nix::Result<i64> {
    call(libc::SYS_symlinkat, [address(c"/etc"), HERE, address(c"/run/host/sockets/link")])
}

fn remove_socket() -> nix::Result<i64> {
    call(libc::SYS_unlinkat, [HERE, address(c"/run/host/sockets/other.sock"), 0])
}

fn remove_elsewhere() -> nix::Result<i64> {
    call(libc::SYS_unlinkat, [HERE, address(c"/run/host/other.sock"), 0])
}
