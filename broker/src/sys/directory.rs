//! Reading directories by descriptor.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Result;

pub use rustix::fs::{FileType, Stat, major, minor};

/// The names of a directory's entries, without `.` and `..`. See readdir(3).
///
/// # Capabilities
/// None if the file mode allows reading; otherwise CAP_DAC_READ_SEARCH.
///
/// # Errors
/// Those of getdents(2).
pub fn names(directory: impl AsFd) -> Result<impl Iterator<Item = Result<CString>>> {
    let entries = Dir::read_from(directory)?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_owned()));
    Ok(names.filter(|name| !matches!(name.as_deref(), Ok(name) if name == c"." || name == c"..")))
}

/// The status of an entry; of the file that it points to if it is a symbolic link and `follow` is set. See fstatat(2).
///
/// # Capabilities
/// None if the directory's mode allows searching; otherwise CAP_DAC_READ_SEARCH.
///
/// # Errors
/// Those of fstatat(2).
pub fn stat(directory: impl AsFd, name: &CStr, follow: bool) -> Result<Stat> {
    statat(directory, name, if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW })
}

/// Opens a directory below `root` for reading, without following symbolic links. See openat2(2), Linux 5.6.
///
/// # Capabilities
/// None if the file mode allows reading; otherwise CAP_DAC_READ_SEARCH.
///
/// # Errors
/// Those of openat2(2); ELOOP for a symbolic link, EXDEV for a path that leads out of `root`.
pub fn open_beneath(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    openat2(root, path, flags, Mode::empty(), resolve)
}
