//! The file of a Unix socket: bound without following a link, with its mode from the first instant, and
//! removed only while it is still the one that was made.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, umask};
use nix::unistd::{Gid, ROOT, UnlinkatFlags, fchdir, fchownat, unlinkat};
use portreeve_protocol::takeover::SocketFile;

use super::directories::Directories;

/// A socket's file.
#[derive(Debug)]
pub struct UnixFile {
    directory: PathBuf,
    name: String,
    identity: (libc::dev_t, libc::ino_t),
    /// It is another broker's still, and not removed here.
    lent: bool,
}

impl UnixFile {
    /// Binds the socket to an absolute path in one of the directories. A socket's file that a dead program left
    /// there is replaced; anything else that is there is EADDRINUSE.
    pub fn bind(directories: &Directories, socket: &OwnedFd, path: &str, mode: u32) -> Result<Self, Errno> {
        let (directory, name) = split(path)?;
        let descriptor = directories.get(&directory)?;
        // bind(2) has no variant that takes a directory, so the process stands in it meanwhile.
        fchdir(descriptor)?;
        let bound = bind_here(socket, name, mode);
        nix::unistd::chdir("/")?;
        bound?;
        let identity = identity(descriptor, name)?;
        Ok(Self { directory, name: name.to_owned(), identity, lent: false })
    }

    /// The file of a socket that another broker made, at the same path: its own until [`UnixFile::own`]. ESTALE where
    /// another has taken its place.
    pub fn of_another(directories: &Directories, path: &str, file: SocketFile) -> Result<Self, Errno> {
        let (directory, name) = split(path)?;
        let identity = identity(directories.get(&directory)?, name)?;
        match (file.device, file.inode) == identity {
            true => Ok(Self { directory, name: name.to_owned(), identity, lent: true }),
            false => Err(Errno::ESTALE),
        }
    }

    /// Takes the file for this broker's own.
    pub fn own(&mut self) {
        self.lent = false;
    }

    /// How another broker knows it.
    pub fn told(&self) -> SocketFile {
        SocketFile { device: self.identity.0, inode: self.identity.1 }
    }

    /// Gives the file to root and this group, and then this mode.
    pub fn open_to(&self, directories: &Directories, group: Gid, mode: u32) -> Result<(), Errno> {
        let (directory, name) = (directories.get(&self.directory)?, self.name.as_str());
        fchownat(directory, name, Some(ROOT), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        fchmodat(directory, name, Mode::from_bits_truncate(mode), FchmodatFlags::NoFollowSymlink)
    }

    /// Removes the file, unless another has taken its place or it is another broker's.
    pub fn remove(&self, directories: &Directories) {
        if self.lent {
            return;
        }
        let Ok(directory) = directories.get(&self.directory) else {
            return;
        };
        if identity(directory, &self.name) == Ok(self.identity) {
            let _gone_already = unlinkat(directory, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// A path's directory and the name in it.
fn split(path: &str) -> Result<(PathBuf, &str), Errno> {
    let path = Path::new(path);
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(Errno::EINVAL)?;
    Ok((path.parent().ok_or(Errno::EINVAL)?.to_owned(), name))
}

fn identity(directory: BorrowedFd<'_>, name: &str) -> Result<(libc::dev_t, libc::ino_t), Errno> {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino))
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
        Err(Errno::EADDRINUSE) if is_stale(name, &address)? => {
            unlinkat(AT_FDCWD, name, UnlinkatFlags::NoRemoveDir)?;
            bind()
        }
        other => other,
    }
}

/// Whether the file is a socket that nobody listens on. An empty datagram tells, of any kind of socket: a confined
/// broker may not connect.
fn is_stale(name: &str, address: &UnixAddr) -> Result<bool, Errno> {
    let stat = fstatat(AT_FDCWD, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
        return Ok(false);
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    Ok(sendto(probe.as_raw_fd(), &[], address, MsgFlags::empty()) == Err(Errno::ECONNREFUSED))
}
