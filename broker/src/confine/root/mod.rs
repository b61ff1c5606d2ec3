//! An empty, read-only root in a private mount namespace.
//!
//! Promises: afterwards the only reachable paths are the given directories, in which Unix sockets are bound; each is
//! returned open, so that nothing needs to be opened by path later. The root is empty, read-only, nosuid, nodev and
//! noexec, which is read back from the kernel. Touches the mounts of a new namespace, never the host's. Needs
//! CAP_SYS_ADMIN and Linux 5.6; see mount_namespaces(7), pivot_root(2), open_tree(2).

mod read_back;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::failure::{Exit, Failure};
use crate::sys::SocketDirectory;

const STEP: &str = "empty root";
const NO_PROGRAM: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Replaces the root by an empty one, irrevocably. Only `directories`, absolute and without symbolic links, remain, at
/// the same paths and writable. Mounts below one of them are not visible unless they are named too.
///
/// # Errors
/// The call that failed, with the directory. The process must then end: its root is undefined.
pub fn enter(directories: &[PathBuf]) -> Result<Vec<SocketDirectory>, Failure> {
    let mut paths = directories.to_vec();
    paths.sort();
    paths.dedup();
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| {
        Failure::new(
            Exit::NoPermission,
            STEP,
            format_args!("unshare CLONE_NEWNS failed: {errno}"),
            "start portreeved with CAP_SYS_ADMIN; portreeved drops it afterwards unless security.capabilities contains it",
        )
    })?;
    // From now on mounts do not propagate between this namespace and the host.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(os("mount MS_PRIVATE /"))?;
    let mounts: Vec<DetachedMount> = paths.iter().map(|path| detach(path)).collect::<Result<_, _>>()?;
    let root = new_root()?;
    for directory in &mounts {
        make_mount_point(&root, &directory.path)?;
    }
    replace_root(&root)?;
    // Sorted, so that a directory inside another one is mounted after it.
    for directory in &mounts {
        attach(directory)?;
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | NO_PROGRAM;
    mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>)
        .map_err(os("mount MS_REMOUNT MS_RDONLY /"))?;
    read_back::verify(&mounts)?;
    paths.into_iter().map(|path| Ok(SocketDirectory { descriptor: open_directory(&path)?, path })).collect()
}

fn os<E: std::fmt::Display>(call: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::os(STEP, call, error)
}

/// A detached bind mount of a host directory.
struct DetachedMount {
    path: PathBuf,
    tree: OwnedFd,
    stat: FileStat,
}

fn detach(path: &Path) -> Result<DetachedMount, Failure> {
    let mut components = path.components();
    let is_plain = components.next() == Some(Component::RootDir)
        && components.clone().next().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)));
    if !is_plain {
        return Err(refused(path, "is not an absolute path below /", "write it without . and .."));
    }
    let directory = open_directory(path)?;
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&directory, "", clone).map_err(os("open_tree OPEN_TREE_CLONE"))?;
    let stat = fstat(&directory).map_err(os("fstat"))?;
    Ok(DetachedMount { path: path.to_owned(), tree, stat })
}

fn refused(path: &Path, why: &str, remedy: &str) -> Failure {
    Failure::new(Exit::Config, STEP, format_args!("the socket directory {} {why}", path.display()), remedy)
}

fn open_directory(path: &Path) -> Result<OwnedFd, Failure> {
    let open_how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, path, open_how).map_err(|errno| match errno {
        Errno::ELOOP => refused(path, "contains a symbolic link", "write the path that the link points to"),
        Errno::ENOENT => refused(path, "does not exist", "create it before portreeved starts"),
        Errno::ENOTDIR => refused(path, "is not a directory", "name a directory"),
        errno => refused(path, &format!("cannot be opened: {errno}"), "see path_resolution(7)"),
    })
}

/// A detached tmpfs, just large enough for the mount points.
fn new_root() -> Result<OwnedFd, Failure> {
    let config = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(os("fsopen tmpfs"))?;
    for (key, value) in [("size", "64k"), ("mode", "0755"), ("source", "portreeve")] {
        fsconfig_set_string(&config, key, value).map_err(os("fsconfig tmpfs"))?;
    }
    fsconfig_create(&config).map_err(os("fsconfig FSCONFIG_CMD_CREATE tmpfs"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&config, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(os("fsmount tmpfs"))
}

fn make_mount_point(root: &OwnedFd, path: &Path) -> Result<(), Failure> {
    let mut made = PathBuf::new();
    for name in names(path) {
        made.push(name);
        match mkdirat(root, &made, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => {
                return Err(refused(
                    path,
                    &format!("cannot be created in the empty root: {errno}"),
                    "use fewer directories",
                ));
            }
        }
    }
    Ok(())
}

fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

/// Makes `root` the root of this process and unmounts the old one.
fn replace_root(root: &OwnedFd) -> Result<(), Failure> {
    // Mounted over the old root, so that no directory of the host is needed as a mount point.
    move_mount(root, "", rustix::fs::CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(os("move_mount to /"))?;
    fchdir(root).map_err(os("fchdir to the empty root"))?;
    // The old root is now mounted over the new one; it is detached from there.
    pivot_root(".", ".").map_err(os("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(os("umount2 MNT_DETACH of the old root"))?;
    chdir("/").map_err(os("chdir /"))
}

fn attach(directory: &DetachedMount) -> Result<(), Failure> {
    let path = &directory.path;
    let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&directory.tree, "", rustix::fs::CWD, path.as_path(), from_descriptor)
        .map_err(os("move_mount of a socket directory"))?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | NO_PROGRAM;
    mount(None::<&str>, path.as_path(), None::<&str>, flags, None::<&str>)
        .map_err(os("mount MS_REMOUNT MS_BIND of a socket directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_absolute_and_plain_is_refused() {
        for path in ["/", "run", "", "/run/../etc"] {
            let failure = detach(Path::new(path)).map(|_| ()).unwrap_err().to_string();
            assert!(failure.contains("is not an absolute path"), "{failure}");
        }
        let failure = detach(Path::new("/nonesuch/a")).map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            failure,
            "empty root: the socket directory /nonesuch/a does not exist: create it before portreeved starts"
        );
    }
}
