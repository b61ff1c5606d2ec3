//! Chroots for workers: directories owned by root that contain only what a test puts there.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use crate::Host;

/// The user id of the tests' workers: that of `nobody` on Linux.
pub const WORKER: u32 = 65534;

/// A chroot.
pub struct Chroot {
    /// Its path on the host.
    pub path: PathBuf,
}

impl Chroot {
    /// Creates an empty chroot.
    pub fn new(host: &Host, name: &str) -> Self {
        let path = host.path(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { path }
    }

    /// Adds a directory that the worker owns, such as `/mail`.
    pub fn worker_directory(&self, name: &str) -> PathBuf {
        let path = self.path.join(name.trim_start_matches('/'));
        fs::create_dir_all(&path).unwrap();
        chown(&path, Some(WORKER), Some(WORKER)).unwrap();
        path
    }

    /// Copies a file of the host to the same path in the chroot.
    pub fn copy(&self, file: &Path) {
        let there = self.path.join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(there.parent().unwrap()).unwrap();
        fs::copy(file, &there)
            .unwrap_or_else(|error| panic!("cannot copy {file:?} into the chroot: {error}"));
    }
}
