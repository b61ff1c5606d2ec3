//! Everything that was read for a configuration, as bytes: the reader process reads the files, the broker reads the bytes.
//!
//! Promises: [`Replay`] gives the results that [`Recorder`] recorded, for the same calls in the same order. Bytes that do
//! not match the calls are reported as a read error. This module opens no file itself.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use portreeve_protocol::codec;
use serde::{Deserialize, Serialize};

use super::files::{Files, Opened, ReadError};
use super::peer::PeerName;

/// One result from the file system or a name service.
#[derive(Debug, Serialize, Deserialize)]
enum ReadResult<'a> {
    /// A file was opened.
    File { path: &'a [u8], device: u64, inode: u64 },
    /// A directory was opened; it has these files.
    Directory {
        path: &'a [u8],
        #[serde(borrow)]
        files: Vec<&'a [u8]>,
    },
    /// Opening the path failed.
    NotOpened {
        path: &'a [u8],
        #[serde(borrow)]
        cause: Cause<'a>,
    },
    /// The text of the file that was opened last.
    Text(&'a str),
    /// Reading that file failed.
    #[serde(borrow)]
    NotRead(Cause<'a>),
    /// The id of an account; `None`: there is no such account.
    Account { group: bool, name: &'a str, id: Option<u32> },
    /// A file of accounts cannot be read.
    AccountsUnreadable { file: &'a str, errno: i32 },
}

/// [`ReadError`] as data. Its texts are parts of the bundle, so that a length in it allocates no memory.
#[derive(Debug, Serialize, Deserialize)]
enum Cause<'a> {
    Open(i32),
    Read(i32),
    NotAFile,
    Owner(u32),
    Mode(u32),
    Directory { path: &'a str, owner: u32, mode: u32 },
    Entry { path: &'a str, owner: u32 },
    TooLarge { size: u64, remaining: u64 },
    Utf16,
    Garbled,
}

impl<'a> Cause<'a> {
    fn of(error: &'a ReadError) -> Self {
        let number = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        match error {
            ReadError::Open(error) => Cause::Open(number(error)),
            ReadError::Read(error) => Cause::Read(number(error)),
            ReadError::NotAFile => Cause::NotAFile,
            ReadError::Owner(user) => Cause::Owner(*user),
            ReadError::Mode(mode) => Cause::Mode(*mode),
            ReadError::Directory { path, owner, mode } => {
                Cause::Directory { path, owner: *owner, mode: *mode }
            }
            ReadError::Entry { path, owner } => Cause::Entry { path, owner: *owner },
            ReadError::TooLarge { size, remaining } => Cause::TooLarge { size: *size, remaining: *remaining },
            ReadError::OutOfReach => Cause::Open(libc::EACCES),
            ReadError::Utf16 => Cause::Utf16,
            ReadError::Garbled => Cause::Garbled,
        }
    }
}

impl From<Cause<'_>> for ReadError {
    fn from(cause: Cause<'_>) -> Self {
        match cause {
            // Root without capabilities is denied this.
            Cause::Open(libc::EACCES | libc::EPERM) => ReadError::OutOfReach,
            Cause::Open(number) => ReadError::Open(io::Error::from_raw_os_error(number)),
            Cause::Read(number) => ReadError::Read(io::Error::from_raw_os_error(number)),
            Cause::NotAFile => ReadError::NotAFile,
            Cause::Owner(user) => ReadError::Owner(user),
            Cause::Mode(mode) => ReadError::Mode(mode),
            Cause::Directory { path, owner, mode } => {
                ReadError::Directory { path: path.to_owned(), owner, mode }
            }
            Cause::Entry { path, owner } => ReadError::Entry { path: path.to_owned(), owner },
            Cause::TooLarge { size, remaining } => ReadError::TooLarge { size, remaining },
            Cause::Utf16 => ReadError::Utf16,
            Cause::Garbled => ReadError::Garbled,
        }
    }
}

/// The recorded results, serialized.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle(Vec<u8>);

impl Bundle {
    /// A bundle from untrusted bytes. They are checked when they are read.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Bundle(bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The paths of the files and directories that were read, as the configuration names them.
    pub fn paths(&self) -> BTreeSet<PathBuf> {
        let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
        let read = |result| match result {
            ReadResult::File { path: read, .. } | ReadResult::Directory { path: read, .. } => {
                Some(path(read))
            }
            _ => None,
        };
        self.results().filter_map(read).collect()
    }

    /// Adds the id of an account.
    pub fn add_account(&mut self, name: &PeerName, id: Option<u32>) {
        let (group, name) = match name {
            PeerName::User(name) => (false, name),
            PeerName::Group(name) => (true, name),
        };
        self.add(&ReadResult::Account { group, name, id });
    }

    /// The ids of the accounts; `None` for an unknown name.
    pub fn accounts(&self) -> impl Iterator<Item = (PeerName, Option<u32>)> {
        self.results().filter_map(|result| match result {
            ReadResult::Account { group: true, name, id } => Some((PeerName::Group(name.to_owned()), id)),
            ReadResult::Account { group: false, name, id } => Some((PeerName::User(name.to_owned()), id)),
            _ => None,
        })
    }

    /// Records that a file of accounts cannot be read.
    pub fn set_accounts_unreadable(&mut self, file: &str, error: &io::Error) {
        self.add(&ReadResult::AccountsUnreadable { file, errno: error.raw_os_error().unwrap_or(libc::EIO) });
    }

    /// The file of accounts that cannot be read, if there is one, and why.
    pub fn accounts_unreadable(&self) -> Option<(String, io::Error)> {
        self.results().find_map(|result| match result {
            ReadResult::AccountsUnreadable { file, errno } => {
                Some((file.to_owned(), io::Error::from_raw_os_error(errno)))
            }
            _ => None,
        })
    }

    fn results(&self) -> impl Iterator<Item = ReadResult<'_>> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (result, after) = codec::read_from_stream(rest).ok()?;
            rest = after;
            Some(result)
        })
    }

    fn add(&mut self, result: &ReadResult<'_>) {
        // Serializing into memory cannot fail: only lengths beyond 4 GiB are refused, and paths are shorter.
        let _ = codec::append_to_stream(&mut self.0, result);
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// Reads files and records every result.
pub(crate) struct Recorder<F> {
    files: F,
    bundle: Bundle,
}

impl<F: Files> Recorder<F> {
    pub fn new(files: F) -> Self {
        Self { files, bundle: Bundle::default() }
    }

    pub fn finish(self) -> Bundle {
        self.bundle
    }
}

impl<F: Files> Files for Recorder<F> {
    type File = F::File;

    fn open(&mut self, path: &Path) -> Result<Opened<F::File>, ReadError> {
        let opened = self.files.open(path);
        let path = bytes(path);
        self.bundle.add(&match &opened {
            Ok(Opened::File { identity: (device, inode), .. }) => {
                ReadResult::File { path, device: *device, inode: *inode }
            }
            Ok(Opened::Directory(files)) => {
                ReadResult::Directory { path, files: files.iter().map(|file| bytes(file)).collect() }
            }
            Err(error) => ReadResult::NotOpened { path, cause: Cause::of(error) },
        });
        opened
    }

    fn read(&mut self, file: F::File, remaining: u64) -> Result<String, ReadError> {
        let read = self.files.read(file, remaining);
        self.bundle.add(&match &read {
            Ok(text) => ReadResult::Text(text),
            Err(error) => ReadResult::NotRead(Cause::of(error)),
        });
        read
    }
}

/// Gives the results that a bundle holds.
pub(crate) struct Replay<'b>(&'b [u8]);

impl<'b> Replay<'b> {
    pub fn new(bundle: &'b Bundle) -> Self {
        Self(&bundle.0)
    }

    fn next(&mut self) -> Result<ReadResult<'b>, ReadError> {
        let (result, rest) = codec::read_from_stream(self.0).map_err(|_| ReadError::Garbled)?;
        self.0 = rest;
        Ok(result)
    }
}

impl Files for Replay<'_> {
    type File = ();

    fn open(&mut self, requested: &Path) -> Result<Opened<()>, ReadError> {
        let requested = bytes(requested);
        match self.next()? {
            ReadResult::File { path, device, inode } if path == requested => {
                Ok(Opened::File { file: (), identity: (device, inode) })
            }
            ReadResult::Directory { path, files } if path == requested => {
                let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
                Ok(Opened::Directory(files.into_iter().map(path).collect()))
            }
            ReadResult::NotOpened { path, cause } if path == requested => Err(cause.into()),
            _ => Err(ReadError::Garbled),
        }
    }

    fn read(&mut self, (): (), remaining: u64) -> Result<String, ReadError> {
        match self.next()? {
            ReadResult::Text(text) if text.len() as u64 <= remaining => Ok(text.to_owned()),
            ReadResult::NotRead(cause) => Err(cause.into()),
            _ => Err(ReadError::Garbled),
        }
    }
}
