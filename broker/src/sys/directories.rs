//! The directories in which Unix sockets may be bound, held open: a confined broker opens nothing by path.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

use crate::confine::root::SocketDirectory;

/// The directories, by their absolute paths.
#[derive(Debug, Default)]
pub struct Directories(BTreeMap<PathBuf, OwnedFd>);

impl Directories {
    /// Opens them on the host. No part of a path may be a symbolic link: who could change the link would decide
    /// where root makes a file.
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

    /// Puts the directories of the empty root in place of the host's, from which `..` would lead out.
    pub fn enter(&mut self, entered: Vec<SocketDirectory>) {
        self.0 = entered.into_iter().map(|directory| (directory.path, directory.descriptor)).collect();
    }

    /// One of them; ENOENT where it was not named when the broker started.
    pub fn get(&self, path: &Path) -> Result<BorrowedFd<'_>, Errno> {
        self.0.get(path).map(OwnedFd::as_fd).ok_or(Errno::ENOENT)
    }

    /// All of them.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.0.values().map(OwnedFd::as_fd).collect()
    }

    /// Their paths.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.keys().cloned().collect()
    }
}
