//! Chroots for workers: a directory of root's, and in it only what a test puts there.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use crate::Host;

/// The id that workers of tests have: `nobody` on every system.
pub const WORKER: u32 = 65534;

/// A chroot.
pub struct Chroot {
    /// Where it is, as the host names it.
    pub path: PathBuf,
}

impl Chroot {
    /// An empty one.
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
            .unwrap_or_else(|error| panic!("copying {file:?} into the chroot failed: {error}"));
    }
}
