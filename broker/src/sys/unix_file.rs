//! The file of a Unix socket: created without following a link, with its final mode from the first instant, and removed
//! only while it is still the file that was created.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::socket::{AddressFamily, MsgFlags, SockType, UnixAddr, sendto};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, umask};
use nix::unistd::{Gid, ROOT, UnlinkatFlags, fchdir, fchownat, unlinkat};
use portreeve_protocol::takeover::SocketFile;

use super::socket;
use super::socket_directories::SocketDirectories;

/// The file of a Unix socket.
#[derive(Debug)]
pub struct UnixFile {
    directory: PathBuf,
    name: String,
    identity: (libc::dev_t, libc::ino_t),
    /// The file still belongs to the predecessor, so this broker does not remove it.
    imported: bool,
}

impl UnixFile {
    /// Binds a socket to an absolute path in one of the directories. The file of a socket on which no process listens
    /// any more is replaced. See bind(2), unix(7).
    ///
    /// # Capabilities
    /// CAP_DAC_OVERRIDE for a directory that root may not write to otherwise; none for other directories.
    ///
    /// # Errors
    /// EADDRINUSE if any other file has the name; ENOENT for a directory that was not opened at start; EACCES.
    pub fn bind(
        directories: &SocketDirectories,
        socket: &OwnedFd,
        path: &str,
        mode: u32,
    ) -> Result<Self, Errno> {
        let (directory, name) = split(path)?;
        let descriptor = directories.get(&directory)?;
        // bind(2) has no variant that takes a directory, so the process changes into it and back.
        fchdir(descriptor)?;
        let bound = bind_in_current_directory(socket, name, mode);
        nix::unistd::chdir("/")?;
        bound?;
        let identity = identity(descriptor, name)?;
        Ok(Self { directory, name: name.to_owned(), identity, imported: false })
    }

    /// The file of a socket that the predecessor created at the same path. It belongs to the predecessor until
    /// [`UnixFile::commit_import`]. See fstatat(2).
    ///
    /// # Capabilities
    /// None.
    ///
    /// # Errors
    /// ESTALE if another file has the name; ENOENT if no file has it, or for a directory that was not opened at start.
    pub fn import(directories: &SocketDirectories, path: &str, file: SocketFile) -> Result<Self, Errno> {
        let (directory, name) = split(path)?;
        let identity = identity(directories.get(&directory)?, name)?;
        match (file.device, file.inode) == identity {
            true => Ok(Self { directory, name: name.to_owned(), identity, imported: true }),
            false => Err(Errno::ESTALE),
        }
    }

    /// Takes ownership of an imported file.
    pub fn commit_import(&mut self) {
        self.imported = false;
    }

    /// The identity by which a successor recognises the file.
    pub fn export(&self) -> SocketFile {
        SocketFile { device: self.identity.0, inode: self.identity.1 }
    }

    /// Gives the file to root and this group, then sets its mode. See fchownat(2), fchmodat(2).
    ///
    /// # Capabilities
    /// CAP_CHOWN for a group that root is not in; none for other groups.
    ///
    /// # Errors
    /// EPERM without the capability; EROFS.
    pub fn set_group_and_mode(
        &self,
        directories: &SocketDirectories,
        group: Gid,
        mode: u32,
    ) -> Result<(), Errno> {
        let (directory, name) = (directories.get(&self.directory)?, self.name.as_str());
        fchownat(directory, name, Some(ROOT), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        fchmodat(directory, name, Mode::from_bits_truncate(mode), FchmodatFlags::NoFollowSymlink)
    }

    /// Removes the file, unless another file has its name or it belongs to the predecessor. See unlinkat(2).
    ///
    /// # Capabilities
    /// CAP_DAC_OVERRIDE for a directory that root may not write to otherwise; none for other directories.
    pub fn remove(&self, directories: &SocketDirectories) {
        if self.imported {
            return;
        }
        let Ok(directory) = directories.get(&self.directory) else {
            return;
        };
        if identity(directory, &self.name) == Ok(self.identity) {
            // A file that cannot be removed is replaced as stale when its path is bound again.
            let _ = unlinkat(directory, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
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

fn bind_in_current_directory(socket: &OwnedFd, name: &str, mode: u32) -> Result<(), Errno> {
    let address = UnixAddr::new(name)?;
    let bind = || {
        // The kernel creates the file with mode 0777 less the umask. So the mode is right from the first instant, and
        // no chmod(2) by name is needed.
        let before = umask(Mode::from_bits_truncate(0o777 & !mode));
        let bound = nix::sys::socket::bind(socket.as_raw_fd(), &address);
        umask(before);
        bound
    };
    match bind() {
        Err(Errno::EADDRINUSE) if is_unused_socket(name, &address)? => {
            unlinkat(AT_FDCWD, name, UnlinkatFlags::NoRemoveDir)?;
            bind()
        }
        other => other,
    }
}

/// Whether the file is a socket on which no process listens. A confined broker may not call connect(2), so it sends an empty
/// datagram, which the kernel refuses with ECONNREFUSED for an unused socket of any type.
fn is_unused_socket(name: &str, address: &UnixAddr) -> Result<bool, Errno> {
    let stat = fstatat(AT_FDCWD, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
        return Ok(false);
    }
    let probe = socket::open_nonblocking(AddressFamily::Unix, SockType::Datagram)?;
    Ok(sendto(probe.as_raw_fd(), &[], address, MsgFlags::empty()) == Err(Errno::ECONNREFUSED))
}
