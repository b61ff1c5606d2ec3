//! All that was read for a configuration, as bytes: another process reads the files and this one reads the bytes.
//!
//! Promises: [`Replay`] answers what [`Recorder`] was answered, in the same order and to the same questions; bytes that
//! do not are an error like that of a file, whatever they are. Touches no file by itself.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use portreeve_protocol::codec;
use serde::{Deserialize, Serialize};

use super::files::{Files, NO_UTF_8, NUL, Opened, ReadError};
use super::peer::PeerName;

/// One answer of the file system or of a name service.
#[derive(Debug, Serialize, Deserialize)]
enum Answer<'a> {
    /// A file was opened.
    File { path: &'a [u8], device: u64, inode: u64 },
    /// A directory was opened, in which these files are.
    Directory {
        path: &'a [u8],
        #[serde(borrow)]
        files: Vec<&'a [u8]>,
    },
    /// The path was not opened.
    NotOpened { path: &'a [u8], why: Why },
    /// The file that was opened last was read.
    Text(&'a str),
    /// It was not.
    NotRead(Why),
    /// It is text down to here, and then NUL or no UTF-8.
    NotText { before: &'a str, nul: bool },
    /// The id of an account, which may be none.
    Account { group: bool, name: &'a str, id: Option<u32> },
}

/// [`ReadError`] as data.
#[derive(Debug, Serialize, Deserialize)]
enum Why {
    Open(i32),
    Read(i32),
    NotAFile,
    Owner(u32),
    Mode(u32),
    TooLarge { found: u64, left: u64 },
    Garbled,
}

impl Why {
    fn of(error: &ReadError) -> Self {
        let number = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        match error {
            ReadError::Open(error) => Why::Open(number(error)),
            ReadError::Read(error) => Why::Read(number(error)),
            ReadError::NotAFile => Why::NotAFile,
            ReadError::Owner(user) => Why::Owner(*user),
            ReadError::Mode(mode) => Why::Mode(*mode),
            ReadError::TooLarge { found, left } => Why::TooLarge { found: *found, left: *left },
            ReadError::OutOfReach => Why::Open(libc::EACCES),
            ReadError::NotText { .. } | ReadError::Garbled => Why::Garbled,
        }
    }
}

impl From<Why> for ReadError {
    fn from(why: Why) -> Self {
        match why {
            // What root may not do, having lost its capabilities.
            Why::Open(libc::EACCES | libc::EPERM) => ReadError::OutOfReach,
            Why::Open(number) => ReadError::Open(io::Error::from_raw_os_error(number)),
            Why::Read(number) => ReadError::Read(io::Error::from_raw_os_error(number)),
            Why::NotAFile => ReadError::NotAFile,
            Why::Owner(user) => ReadError::Owner(user),
            Why::Mode(mode) => ReadError::Mode(mode),
            Why::TooLarge { found, left } => ReadError::TooLarge { found, left },
            Why::Garbled => ReadError::Garbled,
        }
    }
}

/// What was read, in bytes that travel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle(Vec<u8>);

impl Bundle {
    /// A bundle of bytes that came from somewhere; what is wrong with them is found when they are read.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Bundle(bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The files and the directories that were read, as the configuration names them.
    pub fn paths(&self) -> BTreeSet<PathBuf> {
        let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
        let read = |answer| match answer {
            Answer::File { path: read, .. } | Answer::Directory { path: read, .. } => Some(path(read)),
            _ => None,
        };
        self.answers().filter_map(read).collect()
    }

    /// Adds the id of an account.
    pub fn add_account(&mut self, name: &PeerName, id: Option<u32>) {
        let (group, name) = match name {
            PeerName::User(name) => (false, name),
            PeerName::Group(name) => (true, name),
        };
        self.add(&Answer::Account { group, name, id });
    }

    /// The ids of the accounts, and `None` for a name that has none.
    pub fn accounts(&self) -> impl Iterator<Item = (PeerName, Option<u32>)> {
        self.answers().filter_map(|answer| match answer {
            Answer::Account { group: true, name, id } => Some((PeerName::Group(name.to_owned()), id)),
            Answer::Account { group: false, name, id } => Some((PeerName::User(name.to_owned()), id)),
            _ => None,
        })
    }

    fn answers(&self) -> impl Iterator<Item = Answer<'_>> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (answer, after) = codec::first(rest).ok()?;
            rest = after;
            Some(answer)
        })
    }

    fn add(&mut self, answer: &Answer<'_>) {
        // Into memory, so nothing can be in the way but numbers too large, which a path has not.
        let _never = codec::append(&mut self.0, answer);
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// Files whose answers are kept.
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
                Answer::File { path, device: *device, inode: *inode }
            }
            Ok(Opened::Directory(files)) => {
                Answer::Directory { path, files: files.iter().map(|file| bytes(file)).collect() }
            }
            Err(error) => Answer::NotOpened { path, why: Why::of(error) },
        });
        opened
    }

    fn read(&mut self, file: F::File, left: u64) -> Result<String, ReadError> {
        let read = self.files.read(file, left);
        self.bundle.add(&match &read {
            Ok(text) => Answer::Text(text),
            Err(ReadError::NotText { before, what, .. }) => Answer::NotText { before, nul: *what == NUL },
            Err(error) => Answer::NotRead(Why::of(error)),
        });
        read
    }
}

/// Files as a bundle has them.
pub(crate) struct Replay<'b>(&'b [u8]);

impl<'b> Replay<'b> {
    pub fn new(bundle: &'b Bundle) -> Self {
        Self(&bundle.0)
    }

    fn next(&mut self) -> Result<Answer<'b>, ReadError> {
        let (answer, rest) = codec::first(self.0).map_err(|_| ReadError::Garbled)?;
        self.0 = rest;
        Ok(answer)
    }
}

impl Files for Replay<'_> {
    type File = ();

    fn open(&mut self, asked: &Path) -> Result<Opened<()>, ReadError> {
        let asked = bytes(asked);
        match self.next()? {
            Answer::File { path, device, inode } if path == asked => {
                Ok(Opened::File { file: (), identity: (device, inode) })
            }
            Answer::Directory { path, files } if path == asked => {
                let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
                Ok(Opened::Directory(files.into_iter().map(path).collect()))
            }
            Answer::NotOpened { path, why } if path == asked => Err(why.into()),
            _ => Err(ReadError::Garbled),
        }
    }

    fn read(&mut self, (): (), left: u64) -> Result<String, ReadError> {
        match self.next()? {
            Answer::Text(text) if text.len() as u64 <= left => Ok(text.to_owned()),
            Answer::NotText { before, nul } => Err(ReadError::NotText {
                offset: before.len(),
                what: if nul { NUL } else { NO_UTF_8 },
                before: before.to_owned(),
            }),
            Answer::NotRead(why) => Err(why.into()),
            _ => Err(ReadError::Garbled),
        }
    }
}
