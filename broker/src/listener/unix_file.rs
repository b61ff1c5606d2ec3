//! The file of a Unix socket: bound without following a link, with its mode from the first instant, and
//! removed only while it is still the one that was made.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::socket::{SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, umask};
use nix::unistd::{Gid, ROOT, UnlinkatFlags, fchdir, fchownat, unlinkat};

/// A socket's file.
#[derive(Debug)]
pub struct UnixFile {
    directory: OwnedFd,
    name: String,
    identity: (libc::dev_t, libc::ino_t),
}

impl UnixFile {
    /// Binds the socket to an absolute path. A file that a dead program left there is replaced; a socket that
    /// somebody listens on, and any other kind of file, is EADDRINUSE.
    pub fn bind(socket: &OwnedFd, path: &str, mode: u32) -> Result<Self, Errno> {
        let (directory, name) = path.rsplit_once('/').ok_or(Errno::EINVAL)?;
        let directory = if directory.is_empty() { "/" } else { directory };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let directory = openat2(nix::fcntl::AT_FDCWD, Path::new(directory), how)?;
        // bind(2) has no variant that takes a directory, so the process stands in it meanwhile.
        fchdir(&directory)?;
        let bound = bind_here(socket, name, mode);
        nix::unistd::chdir("/")?;
        bound?;
        let stat = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok(Self {
            directory,
            name: name.to_owned(),
            identity: (stat.st_dev, stat.st_ino),
        })
    }

    /// Gives the file to root and this group, and then this mode.
    pub fn open_to(&self, group: Gid, mode: u32) -> Result<(), Errno> {
        let name = self.name.as_str();
        fchownat(
            &self.directory,
            name,
            Some(ROOT),
            Some(group),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        fchmodat(
            &self.directory,
            name,
            Mode::from_bits_truncate(mode),
            FchmodatFlags::NoFollowSymlink,
        )
    }

    /// Removes the file, unless another has taken its place.
    pub fn remove(&self) {
        let stat = fstatat(&self.directory, self.name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        if stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity) {
            let _gone_already = unlinkat(&self.directory, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn bind_here(socket: &OwnedFd, name: &str, mode: u32) -> Result<(), Errno> {
    let address = UnixAddr::new(name)?;
    let bind = || {
        // The mode of a socket's file is 0777 less the umask: right from the first instant, and no chmod that
        // could be led astray.
        let before = umask(Mode::from_bits_truncate(0o777 & !mode));
        let bound = nix::sys::socket::bind(socket.as_raw_fd(), &address);
        umask(before);
        bound
    };
    match bind() {
        Err(Errno::EADDRINUSE) if is_stale(socket, name, &address)? => {
            unlinkat(nix::fcntl::AT_FDCWD, name, UnlinkatFlags::NoRemoveDir)?;
            bind()
        }
        other => other,
    }
}

/// Whether the file is a socket that nobody listens on.
fn is_stale(like: &OwnedFd, name: &str, address: &UnixAddr) -> Result<bool, Errno> {
    let stat = fstatat(nix::fcntl::AT_FDCWD, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
        return Ok(false);
    }
    let kind: SockType = getsockopt(like, sockopt::SockType)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(nix::sys::socket::AddressFamily::Unix, kind, flags, None)?;
    Ok(connect(probe.as_raw_fd(), address) == Err(Errno::ECONNREFUSED))
}
