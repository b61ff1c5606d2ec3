//! The directories in which Unix sockets are bound. The broker holds each open, because a confined broker opens nothing
//! by path.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

/// A directory in which Unix sockets are bound.
#[derive(Debug)]
pub struct SocketDirectory {
    /// Its absolute path, on the host and in the empty root.
    pub path: PathBuf,
    /// An O_PATH descriptor of it.
    pub descriptor: OwnedFd,
}

/// The open directories, by their absolute paths.
#[derive(Debug, Default)]
pub struct SocketDirectories(BTreeMap<PathBuf, OwnedFd>);

impl SocketDirectories {
    /// Opens directories of the host. No part of a path may be a symbolic link: a user who can change a link could choose
    /// where root creates a file. See openat2(2), Linux 5.6.
    ///
    /// # Capabilities
    /// CAP_DAC_READ_SEARCH for a path that root cannot search otherwise; none for other paths.
    ///
    /// # Errors
    /// The directory that could not be opened, with ELOOP for a symbolic link, ENOENT or ENOTDIR.
    pub fn open(paths: &[PathBuf]) -> Result<Self, (PathBuf, Errno)> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let open = |path: &PathBuf| {
            let directory = openat2(AT_FDCWD, path.as_path(), how).map_err(|errno| (path.clone(), errno))?;
            Ok((path.clone(), directory))
        };
        paths.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Replaces the host's directories, from which `..` would lead to the host, by those of the empty root.
    pub fn replace(&mut self, directories: Vec<SocketDirectory>) {
        self.0 = directories.into_iter().map(|directory| (directory.path, directory.descriptor)).collect();
    }

    /// The descriptor of one directory.
    ///
    /// # Errors
    /// ENOENT for a directory that was not opened at start.
    pub fn get(&self, path: &Path) -> Result<BorrowedFd<'_>, Errno> {
        self.0.get(path).map(OwnedFd::as_fd).ok_or(Errno::ENOENT)
    }

    /// All descriptors.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.0.values().map(OwnedFd::as_fd).collect()
    }

    /// All paths.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.keys().cloned().collect()
    }
}
