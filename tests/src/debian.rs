//! Servers of Debian, unpacked by `tests/debian/unpack` and not installed.
//!
//! [`install`] puts a server's files over those of the test's own mount namespace, so that the server finds them at its usual
//! paths.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, mount, mount_bind};

use crate::namespaces::run;
use crate::{Host, binaries};

/// The directory of the unpacked servers in the target directory, and in that of each test.
pub(crate) const DIRECTORY: &str = "debian";

/// Makes the files of a package, and of the packages that it needs, appear in `/usr`, `/etc` and `/var` of this test. `/usr` and
/// `/etc` can only be read; `/var` has nothing else.
#[track_caller]
pub fn install(host: &Host, package: &str) {
    let unpacked = host.path(DIRECTORY).join(package);
    assert!(
        unpacked.is_dir(),
        "{package} is not unpacked: run tests/run, or tests/debian/unpack {}",
        binaries::target_directory().join(DIRECTORY).display()
    );
    for directory in ["/usr", "/etc"] {
        let options =
            CString::new(format!("lowerdir={}{directory}:{directory}", unpacked.display())).unwrap();
        mount("overlay", directory, "overlay", MountFlags::RDONLY, Some(options.as_c_str()))
            .unwrap_or_else(|error| panic!("cannot mount an overlay at {directory}: {error}"));
    }
    mount_var();
    run(Command::new("cp").arg("-r").arg(unpacked.join("var/.")).arg("/var"), "coreutils");
}

/// Makes `/var` an empty directory of this test.
#[track_caller]
pub fn mount_var() {
    mount("tmpfs", "/var", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))
        .unwrap_or_else(|error| panic!("cannot mount a private /var: {error}"));
}

/// Opens the directory of the unpacked servers, if it exists: to be called before the test's own `/tmp` hides it.
pub(crate) fn open_directory() -> Option<OwnedFd> {
    open(binaries::target_directory().join(DIRECTORY), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Makes the opened directory appear below the test's own directory.
pub(crate) fn mount_directory(host: &Host, directory: &OwnedFd) {
    let place = host.path(DIRECTORY);
    fs::create_dir(&place).unwrap();
    mount_bind(format!("/proc/self/fd/{}", directory.as_raw_fd()), &place)
        .unwrap_or_else(|error| panic!("cannot mount the unpacked servers: {error}"));
}
