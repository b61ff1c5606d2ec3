//! Reads configuration files: only files that only root can write, and only a bounded number of bytes.
//!
//! Every check is made on the opened descriptor, so the file that was checked is the file that is read. All reading goes
//! through the trait [`Files`], so that a configuration recorded by the reader process is parsed by the same code.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::characters::decode;
use super::trusted_path;
use crate::sys::directory::{self, FileType};

/// The maximum size in bytes of all files of one configuration together. The parsed tree of the densest possible text
/// takes twenty times as much, that of an ordinary text five times.
pub const MAX_BYTES: u64 = 32 << 20;

/// Which users besides root may own a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// None. The broker uses this: the file decides what root does. Nobody else may be able to replace the file either, by
    /// a directory or a symbolic link of its path.
    RootOnly,
    /// The user with this id, who checks their own file.
    RootOr(u32),
    /// Any user. Only for checking the syntax.
    Anyone,
}

/// The cause why a file is not read. Each message continues a sentence that begins with the file's name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    #[error("cannot be read: {0}")]
    Read(io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("is owned by the user with id {0}, who could change what the broker does")]
    Owner(u32),
    #[error("is writable by its group or by everyone (mode {0:04o})")]
    Mode(u32),
    #[error(
        "is below the directory {path:?}, in which others than root can replace it (owner {owner}, mode {mode:04o})"
    )]
    Directory { path: String, owner: u32, mode: u32 },
    #[error(
        "is reached through {path:?}, which is in a directory that everyone can write to, and is owned by the user with id {owner}"
    )]
    Entry { path: String, owner: u32 },
    #[error("has {size} bytes; all files of a configuration together may have {MAX_BYTES}{}", after_others(*remaining))]
    TooLarge { size: u64, remaining: u64 },
    #[error("is UTF-16 text")]
    Utf16,
    #[error("cannot be opened by the process that reads the configuration for a reload")]
    OutOfReach,
    #[error("does not match the reader's request")]
    Garbled,
}

/// The bytes that remain after the files before this one.
fn after_others(remaining: u64) -> String {
    match remaining {
        MAX_BYTES => String::new(),
        _ => format!(", of which {remaining} remain"),
    }
}

impl ReadError {
    /// What to do about it.
    pub fn remedy(&self, path: &Path, is_included: bool) -> String {
        match self {
            ReadError::Open(error) | ReadError::Read(error) => match error.kind() {
                io::ErrorKind::NotFound if is_included && path.to_string_lossy().contains('*') => {
                    "include takes no pattern: name a file, or a directory to include all its files"
                        .to_owned()
                }
                io::ErrorKind::NotFound if !is_included => "check the name".to_owned(),
                io::ErrorKind::NotFound => "check the name; a relative one is looked up beside the file \
                                            that includes it"
                    .to_owned(),
                io::ErrorKind::PermissionDenied => {
                    "run as a user that can read it, or change its mode".to_owned()
                }
                _ => "check the file and the disk that it is on".to_owned(),
            },
            ReadError::NotAFile if !is_included => "name a file".to_owned(),
            ReadError::NotAFile => "include a file or a directory of files".to_owned(),
            ReadError::Owner(_) => format!("chown root {}", path.display()),
            ReadError::Mode(_) => format!("chmod go-w {}", path.display()),
            ReadError::Directory { path, owner, mode } => match (*owner != 0, mode & 0o022 != 0) {
                (true, true) => format!("chown root {path} && chmod go-w {path}, or move the file"),
                (true, false) => format!("chown root {path}, or move the file"),
                (false, _) => format!("chmod go-w {path}, or move the file"),
            },
            ReadError::Entry { path, .. } => format!("chown -h root {path}, or move the file"),
            ReadError::TooLarge { .. } => "check that this is the right file".to_owned(),
            ReadError::Utf16 => "save it as UTF-8 text".to_owned(),
            ReadError::OutOfReach => {
                "make it readable for root without capabilities, below a directory that held a file \
                                      of the configuration when portreeved started; or restart portreeved"
                    .to_owned()
            }
            ReadError::Garbled => "restart portreeved and report this as a bug".to_owned(),
        }
    }
}

/// A source of configuration files.
pub(crate) trait Files {
    /// An opened file that has not been read.
    type File;

    /// Opens the file or directory at a path and checks who can write to it.
    fn open(&mut self, path: &Path) -> Result<Opened<Self::File>, ReadError>;

    /// Reads a whole file of at most `remaining` bytes.
    fn read(&mut self, file: Self::File, remaining: u64) -> Result<String, ReadError>;
}

/// An opened file or directory.
#[derive(Debug)]
pub(crate) enum Opened<F> {
    /// A file, identified by device and inode.
    File { file: F, identity: (u64, u64) },
    /// A directory, and the files in it: see [`list`].
    Directory(Vec<PathBuf>),
}

/// The files of this host.
pub(crate) struct Disk(pub Trust);

impl Files for Disk {
    type File = (File, Metadata);

    fn open(&mut self, path: &Path) -> Result<Opened<Self::File>, ReadError> {
        let (file, meta) = open(path, self.0)?;
        Ok(match meta.is_dir() {
            true => Opened::Directory(list(&file, path)?),
            false => Opened::File { identity: (meta.dev(), meta.ino()), file: (file, meta) },
        })
    }

    fn read(&mut self, (file, meta): Self::File, remaining: u64) -> Result<String, ReadError> {
        read(file, &meta, remaining)
    }
}

fn open(path: &Path, trust: Trust) -> Result<(File, Metadata), ReadError> {
    // Opening a FIFO must not block, and opening a terminal must not make it the controlling one.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match trust {
        Trust::RootOnly | Trust::RootOr(0) => trusted_path::open(path, flags)?,
        // Whoever checks their own file can replace it anyway.
        Trust::RootOr(_) | Trust::Anyone => {
            let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
            File::from(opened.map_err(|errno| ReadError::Open(errno.into()))?)
        }
    };
    let meta = file.metadata().map_err(ReadError::Open)?;
    if !meta.is_file() && !meta.is_dir() {
        return Err(ReadError::NotAFile);
    }
    let owned = match trust {
        Trust::RootOnly => meta.uid() == 0,
        Trust::RootOr(user) => meta.uid() == 0 || meta.uid() == user,
        Trust::Anyone => true,
    };
    if !owned {
        return Err(ReadError::Owner(meta.uid()));
    }
    if trust != Trust::Anyone && meta.mode() & 0o022 != 0 {
        return Err(ReadError::Mode(meta.mode() & 0o7777));
    }
    Ok((file, meta))
}

/// Reads a whole file of at most `remaining` bytes.
fn read(file: File, meta: &Metadata, remaining: u64) -> Result<String, ReadError> {
    let too_large = |size| ReadError::TooLarge { size, remaining };
    if meta.len() > remaining {
        return Err(too_large(meta.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default());
    // The file may have grown since fstat.
    file.take(remaining + 1).read_to_end(&mut bytes).map_err(ReadError::Read)?;
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if size > remaining {
        return Err(too_large(size));
    }
    // The byte order marks of UTF-16.
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(ReadError::Utf16);
    }
    let text = decode(bytes);
    let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
    if size > remaining { Err(too_large(size)) } else { Ok(text) }
}

/// The names of a directory's files in alphabetical order: no dot files, no subdirectories.
fn list(file: &File, path: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let os = |error: rustix::io::Errno| ReadError::Read(error.into());
    let mut files = Vec::new();
    for name in directory::names(file).map_err(os)? {
        let name = name.map_err(os)?;
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        // Keep a name that cannot be examined: opening it reports the cause with the name.
        let kind = directory::stat(file, &name, true).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind != Ok(FileType::Directory) {
            files.push(path.join(OsStr::from_bytes(name.to_bytes())));
        }
    }
    files.sort();
    Ok(files)
}
