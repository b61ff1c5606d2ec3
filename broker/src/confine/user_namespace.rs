//! A user namespace for the worker: inside, it is root and can become any other user; on the host it has the ids of a range that
//! nobody else has, owns nothing, and has no capability.
//!
//! Promises: the capabilities of the namespace are those of `CAPABILITIES` at most. None of them has an effect on what belongs to
//! the host, such as its network namespace, mounts and files. No process in it makes a further namespace: a new user namespace
//! needs a limit that is 0, every other one CAP_SYS_ADMIN. The root directory is that of a mount namespace, so that chroot(2)
//! leads nowhere else. Sources: user_namespaces(7), capabilities(7), namespaces(7), pivot_root(2), create_user_ns() and
//! set_permissions() of the kernel.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use caps::Capability::{
    CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_SETGID,
    CAP_SETUID, CAP_SYS_CHROOT, CAP_SYS_PTRACE,
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{chdir, fchdir, getpid, pipe2, pivot_root};
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::capability::CapabilitySet;
use crate::config::IdRange;
use crate::failure::{Exit, Failure};
use crate::sys::process;

const STEP: &str = "security.user_namespace";
/// In this directory of /proc, each user namespace sees its own limits.
const MAX_USER_NAMESPACES: &str = "sys/user/max_user_namespaces";

/// What a server that begins as root needs: to become other users, to own files, to signal, to change its root directory. The last
/// one is for the supervisor of its binds: a process that has changed its ids, as Postfix's does before it binds, is not dumpable,
/// and only this capability lets another process look into it. The supervised program does not have it. The launcher is out of its
/// reach: its memory belongs to the user namespace of the host, and it is not dumpable. See ptrace(2).
const CAPABILITIES: [caps::Capability; 10] = [
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_FOWNER,
    CAP_FSETID,
    CAP_KILL,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_CHROOT,
    CAP_SYS_PTRACE,
];

/// The same as a set.
pub fn capabilities() -> CapabilitySet {
    CapabilitySet::from_bits(CAPABILITIES.iter().fold(0, |bits, capability| bits | capability.bitmask()))
}

/// The line of `status` and `explain`.
pub fn describe(IdRange { first, count }: IdRange) -> String {
    let (last, last_of_host) = (count - 1, first + (count - 1));
    format!(
        "user namespace: ids 0-{last} are {first}-{last_of_host} of the host; no capability over the host"
    )
}

fn os<E: std::fmt::Display>(call: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::os(STEP, call, error)
}

/// Makes a directory the root of a mount namespace of this process, to which mounts of the host still propagate. Needs
/// CAP_SYS_ADMIN.
///
/// # Errors
/// The call that failed. The process must then end: its root is undefined.
pub fn enter_root(root: OwnedFd) -> Result<(), Failure> {
    // While this process is in the mount namespace of the directory.
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(&root, "", clone).map_err(os("open_tree of security.chroot"))?;
    drop(root);
    unshare(CloneFlags::CLONE_NEWNS).map_err(os("unshare CLONE_NEWNS"))?;
    let make_slave = |path: &str| {
        mount(None::<&str>, path, None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
    };
    make_slave("/").map_err(os("mount MS_SLAVE /"))?;
    move_mount(&tree, "", rustix::fs::CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(os("move_mount of security.chroot"))?;
    fchdir(&tree).map_err(os("fchdir to security.chroot"))?;
    // The copy is shared if the original is, as under systemd, and pivot_root(2) refuses a shared mount.
    make_slave(".").map_err(os("mount MS_SLAVE of security.chroot"))?;
    pivot_root(".", ".").map_err(os("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(os("umount2 MNT_DETACH of the old root"))?;
    chdir("/").map_err(os("chdir /"))
}

/// Enters a new user namespace with these ids, which cannot have namespaces of its own. `root` becomes the root directory before.
///
/// # Errors
/// The call that failed.
pub fn enter(range: IdRange, root: Option<OwnedFd>) -> Result<(), Failure> {
    let proc =
        openat(rustix::fs::CWD, "/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let proc = proc.map_err(os("open /proc"))?;
    let mapper = Mapper::start(range)?;
    root.map_or(Ok(()), enter_root)?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| {
        let remedy = match errno {
            Errno::ENOSPC | Errno::EUSERS => "raise the sysctl user.max_user_namespaces",
            Errno::EINVAL => "use a kernel with user namespaces (CONFIG_USER_NS)",
            _ => "check whether a container, a security module or a sysctl (kernel.apparmor_restrict_unprivileged_userns) \
                  forbids user namespaces",
        };
        Failure::new(Exit::OsError, STEP, format_args!("unshare CLONE_NEWUSER failed: {}", errno.desc()), remedy)
    })?;
    mapper.map()?;
    let limit = openat(&proc, MAX_USER_NAMESPACES, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let limited = limit.map_err(std::io::Error::from).and_then(|limit| File::from(limit).write_all(b"0"));
    limited.map_err(|error| {
        let what =
            format_args!("cannot write 0 to /proc/{MAX_USER_NAMESPACES} of the new namespace: {error}");
        Failure::new(Exit::OsError, STEP, what, "start portreeved where /proc/sys is writable")
    })
}

/// Tries what the worker must not be able to do, although it is root of its namespace.
///
/// # Errors
/// What succeeded.
pub fn verify_irrevocable() -> Result<(), Failure> {
    for (what, flag) in [
        ("a user namespace", CloneFlags::CLONE_NEWUSER),
        ("a mount namespace", CloneFlags::CLONE_NEWNS),
        ("a network namespace", CloneFlags::CLONE_NEWNET),
    ] {
        if unshare(flag).is_ok() {
            return Err(Failure::os(STEP, what, "it could be made after confinement, which must fail"));
        }
    }
    Ok(())
}

/// Compares the ids that the kernel reports for a process with those of the configuration.
///
/// # Errors
/// They cannot be read, or differ.
pub fn verify(pid: &str, range: IdRange) -> Result<(), Failure> {
    let expected = ["0", &range.first.to_string(), &range.count.to_string()].join(" ");
    for name in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{name}");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Failure::os(STEP, &format!("read {path}"), error))?;
        let found = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if found != expected {
            return Err(Failure::os(STEP, &path, format_args!("it has {found:?}, expected {expected:?}")));
        }
    }
    Ok(())
}

/// A process that stays outside of the new namespace: only that one may map ids of the host.
struct Mapper {
    process: nix::unistd::Pid,
    entered: File,
    result: File,
}

impl Mapper {
    fn start(range: IdRange) -> Result<Self, Failure> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(os("pipe"));
        let ((entered_reader, entered), (result, result_writer)) = (pipe()?, pipe()?);
        let namespace = getpid();
        let entered_reader = File::from(entered_reader);
        let process = process::fork(|| {
            let mut entered_reader = &entered_reader;
            // If the other process fails, this one ends with it.
            if process::end_with_parent(namespace).is_err() || entered_reader.read_exact(&mut [0]).is_err() {
                return 1;
            }
            let map = format!("0 {} {}\n", range.first, range.count);
            let mapped = ["uid_map", "gid_map"].iter().try_for_each(|name| {
                // The kernel takes the whole map in one write.
                let mut file = File::options().write(true).open(format!("/proc/{namespace}/{name}"))?;
                file.write_all(map.as_bytes())
            });
            let errno = mapped.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
            let written = nix::unistd::write(result_writer.as_fd(), &errno.to_ne_bytes());
            i32::from(written.is_err())
        });
        let process = process.map_err(os("fork"))?;
        Ok(Self { process, entered: entered.into(), result: result.into() })
    }

    fn map(mut self) -> Result<(), Failure> {
        let mut errno = [0; 4];
        let exchanged = self.entered.write_all(b"1").and_then(|()| {
            drop(self.entered);
            self.result.read_exact(&mut errno)
        });
        let ended = waitpid(self.process, None);
        exchanged.map_err(os("write the maps of ids"))?;
        ended.map_err(os("waitpid"))?;
        match i32::from_ne_bytes(errno) {
            0 => Ok(()),
            errno => {
                let what = format_args!("cannot write the maps of ids: {}", Errno::from_raw(errno).desc());
                let remedy = "start portreeved with CAP_SETUID and CAP_SETGID; in a user namespace, choose ids that it has";
                Err(Failure::new(Exit::NoPermission, STEP, what, remedy))
            }
        }
    }
}
