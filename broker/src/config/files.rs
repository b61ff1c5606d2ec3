//! Reading configuration files: only what nobody but root can have written, and only so much of it.
//!
//! Every check is made on the opened descriptor, so the file that was checked is the file that is read. Whoever reads
//! a configuration asks [`Files`], so that one which was read by another process is read by the same code.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The bytes that all files of one configuration may have together. The tree of the densest possible text takes
/// twenty times its bytes, that of an ordinary one five times.
pub const MAX_BYTES: u64 = 32 << 20;

/// Who besides root may have written a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Nobody: the broker's own view, since the file decides what root does.
    RootOnly,
    /// The user with this id, who checks a file of their own.
    RootOr(u32),
    /// Anyone: only for who asks whether the text is well formed.
    Anyone,
}

/// Why a file is not read. Each is the end of a sentence that begins with the file's name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    #[error("cannot be read: {0}")]
    Read(io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("belongs to the user with id {0}, who could change what the broker does")]
    Owner(u32),
    #[error("can be written by its group or by everybody (mode {0:04o})")]
    Mode(u32),
    #[error("has {found} bytes, and all files of a configuration may have {MAX_BYTES} together{}", after_others(*left))]
    TooLarge { found: u64, left: u64 },
    #[error("is not text: byte {offset} is {what}")]
    NotText { offset: usize, what: &'static str, before: String },
    #[error("cannot be opened by the process that reads the configuration again")]
    OutOfReach,
    #[error("was not what the reader was asked for")]
    Garbled,
}

/// What files before one have left for it.
fn after_others(left: u64) -> String {
    match left {
        MAX_BYTES => String::new(),
        _ => format!(", of which the others leave {left}"),
    }
}

/// Why bytes are no text.
pub(crate) const NUL: &str = "NUL";
/// Likewise.
pub(crate) const NO_UTF_8: &str = "no UTF-8";

impl ReadError {
    /// What to do about it.
    pub fn remedy(&self, path: &Path, is_included: bool) -> String {
        match self {
            ReadError::Open(error) | ReadError::Read(error) => match error.kind() {
                io::ErrorKind::NotFound if is_included && path.to_string_lossy().contains('*') => {
                    "an include takes no pattern: name a file, or a directory for all files in it".to_owned()
                }
                io::ErrorKind::NotFound if !is_included => "check the name".to_owned(),
                io::ErrorKind::NotFound => "check the name; a relative one is looked up beside the file \
                                            that includes it"
                    .to_owned(),
                io::ErrorKind::PermissionDenied => {
                    "run as a user that may read it, or change its mode".to_owned()
                }
                _ => "check the file and the disk that it is on".to_owned(),
            },
            ReadError::NotAFile if !is_included => "name a file".to_owned(),
            ReadError::NotAFile => "include a file or a directory of files".to_owned(),
            ReadError::Owner(_) => format!("chown root {}", path.display()),
            ReadError::Mode(_) => format!("chmod go-w {}", path.display()),
            ReadError::TooLarge { .. } => "check that it is the right file".to_owned(),
            ReadError::NotText { .. } => "write it as UTF-8 without NUL bytes".to_owned(),
            ReadError::OutOfReach => "have it readable for root without any capability, beneath a directory that the \
                                      configuration had files in when portreeved was started; or restart portreeved"
                .to_owned(),
            ReadError::Garbled => "restart portreeved, and report it".to_owned(),
        }
    }
}

/// Where the files of a configuration are looked up.
pub(crate) trait Files {
    /// A file that was opened and not read yet.
    type File;

    /// Opens what is at a path and checks who may write it.
    fn open(&mut self, path: &Path) -> Result<Opened<Self::File>, ReadError>;

    /// Reads a whole file of at most `left` bytes.
    fn read(&mut self, file: Self::File, left: u64) -> Result<String, ReadError>;
}

/// What a path turned out to be.
#[derive(Debug)]
pub(crate) enum Opened<F> {
    /// A file, known by its device and inode.
    File { file: F, identity: (u64, u64) },
    /// A directory, and the files in it: see [`list`].
    Directory(Vec<PathBuf>),
}

/// The files of this host, as this process sees them.
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

    fn read(&mut self, (file, meta): Self::File, left: u64) -> Result<String, ReadError> {
        read(file, &meta, left)
    }
}

fn open(path: &Path, trust: Trust) -> Result<(File, Metadata), ReadError> {
    // A FIFO or a terminal must not make the broker wait or give it a terminal.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags).open(path).map_err(ReadError::Open)?;
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

/// Reads a whole file of at most `left` bytes.
fn read(file: File, meta: &Metadata, left: u64) -> Result<String, ReadError> {
    let too_large = |found| ReadError::TooLarge { found, left };
    if meta.len() > left {
        return Err(too_large(meta.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default());
    // It may have grown since.
    file.take(left + 1).read_to_end(&mut bytes).map_err(ReadError::Read)?;
    let found = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if found > left {
        return Err(too_large(found));
    }
    text(bytes)
}

/// Bytes as text, or what is wrong with them.
fn text(bytes: Vec<u8>) -> Result<String, ReadError> {
    let (mut text, invalid) = match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let mut bytes = error.into_bytes();
            bytes.truncate(valid);
            let text = String::from_utf8(bytes).unwrap_or_default();
            (text, Some(NO_UTF_8))
        }
    };
    let nul = text.find('\0');
    if let Some(offset) = nul {
        text.truncate(offset);
    }
    match nul.map(|_| NUL).or(invalid) {
        None => Ok(text),
        Some(what) => Err(ReadError::NotText { offset: text.len(), what, before: text }),
    }
}

/// The names of a directory's files in alphabetical order: no dot files, no subdirectories.
fn list(directory: &File, path: &Path) -> Result<Vec<PathBuf>, ReadError> {
    use rustix::fs::{AtFlags, Dir, FileType, statat};
    let os = |error: rustix::io::Errno| ReadError::Read(error.into());
    let mut files = Vec::new();
    for entry in Dir::read_from(directory).map_err(os)? {
        let entry = entry.map_err(os)?;
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        // A name that cannot be looked up is kept: opening it says why, with the name.
        let kind =
            statat(directory, name, AtFlags::empty()).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind != Ok(FileType::Directory) {
            files.push(path.join(OsStr::from_bytes(name.to_bytes())));
        }
    }
    files.sort();
    Ok(files)
}
