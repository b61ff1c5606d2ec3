//! Reads the new root back from the kernel.
//!
//! Promises: an error unless the root is a tmpfs, read-only, nosuid, nodev and noexec, without a parent, and empty except
//! for the paths to the socket directories; and unless each of those is the same directory as before, writable, nosuid,
//! nodev and noexec. Changes nothing.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::{DetachedMount, STEP, open_directory, os};
use crate::failure::Failure;

/// Verifies the root and the socket directories.
pub(super) fn verify(directories: &[DetachedMount]) -> Result<(), Failure> {
    let flags = FsFlags::ST_NOSUID | FsFlags::ST_NODEV | FsFlags::ST_NOEXEC;
    let root = open_path(Path::new("/"))?;
    let parent = open_path(Path::new("/.."))?;
    expect(
        mount_flags(&root)?.contains(flags | FsFlags::ST_RDONLY),
        "/ is not read-only, nosuid, nodev and noexec",
    )?;
    let kind = fstatfs(&root).map_err(os("fstatfs /"))?.filesystem_type();
    expect(kind == TMPFS_MAGIC, "/ is not a tmpfs")?;
    expect(
        same_file(&fstat(&root).map_err(os("fstat /"))?, &fstat(&parent).map_err(os("fstat /.."))?),
        "/.. is not /",
    )?;
    expect_only(Path::new("/"), directories)?;
    for directory in directories {
        let current = open_directory(&directory.path)?;
        let name = directory.path.display();
        let is_same = same_file(&fstat(&current).map_err(os("fstat"))?, &directory.stat);
        expect(is_same, format_args!("{name} is not the same directory as before"))?;
        let message = format_args!("{name} is not writable, nosuid, nodev and noexec");
        let mounted = mount_flags(&current)?;
        expect(mounted.contains(flags) && !mounted.contains(FsFlags::ST_RDONLY), message)?;
    }
    Ok(())
}

/// Fails if `at` contains anything except paths to `directories`.
fn expect_only(at: &Path, directories: &[DetachedMount]) -> Result<(), Failure> {
    if directories.iter().any(|directory| directory.path == at) {
        return Ok(());
    }
    let mut entries =
        Dir::open(at, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(os("opendir"))?;
    for entry in entries.iter() {
        let entry = entry.map_err(os("readdir"))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let path = at.join(name);
        let is_path_to_directory = directories.iter().any(|directory| directory.path.starts_with(&path));
        expect(is_path_to_directory, format_args!("{} is in the root, which must be empty", path.display()))?;
        expect_only(&path, directories)?;
    }
    Ok(())
}

fn mount_flags(directory: &OwnedFd) -> Result<FsFlags, Failure> {
    Ok(fstatvfs(directory.as_fd()).map_err(os("fstatvfs"))?.flags())
}

fn open_path(path: &Path) -> Result<OwnedFd, Failure> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(os("open /"))
}

fn same_file(a: &FileStat, b: &FileStat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

fn expect(condition: bool, cause: impl std::fmt::Display) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::os(STEP, "reading the new root back", cause)) }
}
