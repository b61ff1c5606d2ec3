//! Opens a file by a path that only root can change: every directory from `/` to the file, and every symbolic link between
//! them.
//!
//! Promises: each component is opened from the descriptor of the directory before it and checked on its own descriptor, so
//! nothing changes between check and use. A directory must belong to root, and neither its group nor others may write to it.
//! An exception is a sticky directory of root such as /tmp, where the entry itself must belong to root.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};

use super::files::ReadError;

/// As many symbolic links as the kernel follows, see path_resolution(7).
const MAX_LINKS: usize = 40;
const ENTRY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = ENTRY.union(OFlags::DIRECTORY);

fn os(errno: rustix::io::Errno) -> ReadError {
    ReadError::Open(errno.into())
}

/// A directory on the way, which only root can change.
struct Trusted {
    directory: OwnedFd,
    /// Its path, for messages.
    path: PathBuf,
    /// Others may add entries, which are theirs.
    is_sticky: bool,
}

impl Trusted {
    fn root() -> Result<Self, ReadError> {
        Self::check(openat(CWD, "/", DIRECTORY, Mode::empty()).map_err(os)?, "/".into())
    }

    /// The working directory, with every directory above it.
    fn working_directory() -> Result<Self, ReadError> {
        let start = Self::check(openat(CWD, ".", DIRECTORY, Mode::empty()).map_err(os)?, ".".into())?;
        let (mut below, mut path) = (fstat(&start.directory).map_err(os)?, PathBuf::from(".."));
        let mut next = openat(&start.directory, "..", DIRECTORY, Mode::empty()).map_err(os)?;
        loop {
            let stat = fstat(&next).map_err(os)?;
            // The root directory is its own parent.
            if (stat.st_dev, stat.st_ino) == (below.st_dev, below.st_ino) {
                return Ok(start);
            }
            let above = Self::check(next, path.clone())?;
            above.check_entry(&below, &path)?;
            next = openat(&above.directory, "..", DIRECTORY, Mode::empty()).map_err(os)?;
            below = stat;
            path.push("..");
        }
    }

    fn check(directory: OwnedFd, path: PathBuf) -> Result<Self, ReadError> {
        let stat = fstat(&directory).map_err(os)?;
        let mode = stat.st_mode & 0o7777;
        let is_roots = stat.st_uid == 0 || (Some(stat.st_uid) == unmapped_user() && is_root(&stat)?);
        let others_write = mode & 0o022 != 0;
        let is_sticky = others_write && mode & 0o1000 != 0;
        match is_roots && (is_sticky || !others_write) {
            true => Ok(Self { directory, path, is_sticky }),
            false => Err(ReadError::Directory { path: text(&path), owner: stat.st_uid, mode }),
        }
    }

    /// In a sticky directory an entry must be root's, for its owner can replace it.
    fn check_entry(&self, entry: &Stat, path: &Path) -> Result<(), ReadError> {
        match self.is_sticky && entry.st_uid != 0 {
            true => Err(ReadError::Entry { path: text(path), owner: entry.st_uid }),
            false => Ok(()),
        }
    }
}

fn is_root(stat: &Stat) -> Result<bool, ReadError> {
    let root = rustix::fs::stat("/").map_err(os)?;
    Ok((stat.st_dev, stat.st_ino) == (root.st_dev, root.st_ino))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// In a user namespace, the id that the kernel shows for users that have none there. The root directory may belong to such
/// a user, who is outside: whoever owns it controls every file of the namespace.
fn unmapped_user() -> Option<u32> {
    /// The reader process cannot read the files; its parent has.
    static UNMAPPED: OnceLock<Option<u32>> = OnceLock::new();
    *UNMAPPED.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
        let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
        let is_complete = counts.sum::<u64>() >= u64::from(u32::MAX);
        let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?;
        overflow.trim().parse().ok().filter(|_| !is_complete)
    })
}

/// Opens the file or directory for reading, with these additional flags.
pub(super) fn open(path: &Path, flags: OFlags) -> Result<File, ReadError> {
    let mut at = if path.is_absolute() { Trusted::root()? } else { Trusted::working_directory()? };
    let mut rest: VecDeque<OsString> = components(path).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        let path = at.path.join(&name);
        if name == ".." {
            let above = openat(&at.directory, "..", DIRECTORY, Mode::empty()).map_err(os)?;
            at = Trusted::check(above, path)?;
            continue;
        }
        let entry = openat(&at.directory, &name, ENTRY, Mode::empty()).map_err(os)?;
        let stat = fstat(&entry).map_err(os)?;
        at.check_entry(&stat, &path)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(os(rustix::io::Errno::LOOP));
            }
            let target = readlinkat(&entry, "", Vec::new()).map_err(os)?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(component);
            }
            if target.is_absolute() {
                at = Trusted::root()?;
            }
        } else if rest.is_empty() {
            let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return openat(&at.directory, &name, flags, Mode::empty()).map(File::from).map_err(os);
        } else if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            at = Trusted::check(entry, path)?;
        } else {
            return Err(os(rustix::io::Errno::NOTDIR));
        }
    }
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    openat(&at.directory, ".", flags, Mode::empty()).map(File::from).map_err(os)
}

/// The names of a path, without the root and without `.`.
fn components(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::new("..").to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}
