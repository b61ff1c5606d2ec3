//! Attacks on the worker's root directory and namespaces.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use crate::attack::{
    Attack, Outcome, Word, address, all_refused, call, refused, refused_outside_a_namespace as inside,
};

pub const ATTACKS: &[Attack] = &[
    Attack { name: "chroot", attempt: || inside(call(libc::SYS_chroot, [address(c"/writable")])) },
    Attack { name: "nested-chroot", attempt: nested_chroot },
    Attack { name: "dot-dot", attempt: dot_dot },
    Attack { name: "directory-descriptors", attempt: directory_descriptors },
    Attack { name: "unshare-each", attempt: unshare_each },
    Attack { name: "user-namespace", attempt: user_namespace },
    Attack { name: "clone-user-namespace", attempt: clone_user_namespace },
    Attack { name: "mount", attempt: mount },
    Attack { name: "new-mount-calls", attempt: new_mount_calls },
    Attack { name: "unmount", attempt: || refused(call(libc::SYS_umount2, [address(c"/proc"), 2])) },
    Attack { name: "pivot-root", attempt: pivot_root },
    Attack { name: "mknod", attempt: mknod },
    Attack { name: "open-by-handle", attempt: open_by_handle },
    Attack { name: "write-root", attempt: || refused(fs::write("/made", "x")) },
];

/// The classic escape: a chroot below the root, while a directory outside it is open.
fn nested_chroot() -> Outcome {
    let here = || fs::metadata("/").map(|file| (file.dev(), file.ino())).unwrap();
    let (outside, root) = (fs::File::open("/").unwrap(), here());
    let _ = fs::create_dir("/writable/root"); // it may exist
    let nested = call(libc::SYS_chroot, [address(c"/writable/root")]);
    if nested.is_ok() {
        let outside = std::os::fd::AsRawFd::as_raw_fd(&outside);
        call(libc::SYS_fchdir, [Word::from(outside)]).unwrap();
        for _ in 0..64 {
            call(libc::SYS_chdir, [address(c"..")]).unwrap();
        }
        call(libc::SYS_chroot, [address(c".")]).unwrap();
        if here() != root {
            return Outcome::Escaped("it left its root".to_owned());
        }
    }
    inside(nested)
}

fn dot_dot() -> Outcome {
    let here = |path: &str| fs::metadata(path).map(|file| (file.dev(), file.ino())).unwrap();
    if here("/") == here("/../../../..") && here("/") == here("/proc/self/root/..") {
        Outcome::Blocked("/.. is /".to_owned())
    } else {
        Outcome::Escaped("/.. is above /".to_owned())
    }
}

/// Looks for a directory that was opened before the chroot, which would lead out of it.
fn directory_descriptors() -> Outcome {
    for number in 0..1024 {
        // SAFETY: fstat writes only to the structure; if the number is not open, it fails.
        let mode = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(number, &raw mut stat) == 0 { stat.st_mode } else { 0 }
        };
        if mode & libc::S_IFMT == libc::S_IFDIR {
            return Outcome::Escaped(format!("descriptor {number} is a directory"));
        }
    }
    Outcome::Blocked("none of the descriptors is a directory".to_owned())
}

fn unshare_each() -> Outcome {
    let kinds = [
        ("mount", libc::CLONE_NEWNS),
        ("uts", libc::CLONE_NEWUTS),
        ("ipc", libc::CLONE_NEWIPC),
        ("net", libc::CLONE_NEWNET),
        ("pid", libc::CLONE_NEWPID),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("time", 0x80),
    ];
    all_refused(kinds.map(|(name, flag)| (name.to_owned(), call(libc::SYS_unshare, [Word::from(flag)]))))
}

/// The kernel denies this to a process in a chroot: its root must be that of its mount namespace.
fn user_namespace() -> Outcome {
    refused(call(libc::SYS_unshare, [Word::from(libc::CLONE_NEWUSER)]))
}

fn clone_user_namespace() -> Outcome {
    let flags = Word::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    let cloned = call(libc::SYS_clone, [flags, 0, 0, 0, 0]);
    if let Ok(0) = cloned {
        // SAFETY: the child only exits.
        unsafe { libc::_exit(0) }
    }
    refused(cloned)
}

fn mount() -> Outcome {
    let tmpfs = address(c"tmpfs");
    let new = call(libc::SYS_mount, [tmpfs, address(c"/writable"), tmpfs, 0, 0]);
    let bind = Word::try_from(libc::MS_BIND).unwrap();
    let bound = call(libc::SYS_mount, [address(c"/proc"), address(c"/writable"), 0, bind, 0]);
    all_refused([("tmpfs".to_owned(), new), ("bind".to_owned(), bound)])
}

fn new_mount_calls() -> Outcome {
    let fsopen = call(libc::SYS_fsopen, [address(c"tmpfs"), 0]);
    let clone = call(libc::SYS_open_tree, [libc::AT_FDCWD.into(), address(c"/"), 1]);
    all_refused([("fsopen".to_owned(), fsopen), ("open_tree".to_owned(), clone)])
}

fn pivot_root() -> Outcome {
    refused(call(libc::SYS_pivot_root, [address(c"/writable"), address(c"/writable")]))
}

fn mknod() -> Outcome {
    let node = |name: &str, kind: u32, device: libc::dev_t| {
        let path = std::ffi::CString::new(format!("/writable/{name}")).unwrap();
        let mode = Word::from(kind | 0o666);
        let device = Word::try_from(device).unwrap();
        let here = Word::from(libc::AT_FDCWD);
        (name.to_owned(), call(libc::SYS_mknodat, [here, address(path.as_c_str()), mode, device]))
    };
    all_refused([
        node("memory", libc::S_IFCHR, libc::makedev(1, 1)),
        node("disk", libc::S_IFBLK, libc::makedev(254, 0)),
    ])
}

fn open_by_handle() -> Outcome {
    // struct file_handle for inode 2 of the root's file system.
    let handle = [8_u32, 1, 2, 0];
    let root = fs::File::open("/").map(std::os::fd::IntoRawFd::into_raw_fd).unwrap();
    let opened: io::Result<Word> = call(libc::SYS_open_by_handle_at, [root.into(), address(&handle), 0]);
    refused(opened)
}
