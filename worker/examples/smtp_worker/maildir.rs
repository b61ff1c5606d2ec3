//! Delivery into a Maildir: a message is written to `tmp`, synced, and renamed into `new`, so that `new` never
//! contains a partial message.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A Maildir, and the host name for its file names.
#[derive(Debug)]
pub struct Maildir {
    root: PathBuf,
    host: String,
    delivered: AtomicU64,
}

/// A message that is being written. Dropping it before [`Delivery::finish`] removes its file.
#[derive(Debug)]
pub struct Delivery {
    file: BufWriter<File>,
    name: String,
    temporary: Option<PathBuf>,
    root: PathBuf,
}

impl Maildir {
    /// Opens a Maildir, and creates its missing directories.
    pub fn open(root: &Path, host: &str) -> io::Result<Self> {
        for part in ["tmp", "new", "cur"] {
            fs::create_dir_all(root.join(part))?;
        }
        Ok(Self {
            root: root.to_owned(),
            host: host.replace('/', "\\057").replace(':', "\\072"),
            delivered: AtomicU64::new(0),
        })
    }

    /// Starts a message.
    pub fn begin(&self) -> io::Result<Delivery> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!(
            "{}.M{:06}P{}Q{}.{}",
            now.as_secs(),
            now.subsec_micros(),
            std::process::id(),
            self.delivered.fetch_add(1, Ordering::Relaxed),
            self.host
        );
        let temporary = self.root.join("tmp").join(&name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        Ok(Delivery {
            file: BufWriter::with_capacity(64 * 1024, file),
            name,
            temporary: Some(temporary),
            root: self.root.clone(),
        })
    }
}

impl Delivery {
    /// The message's unique name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends to the message.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Moves the message to `new`. When this returns, the message survives a power failure.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        let new = self.root.join("new");
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, new.join(&self.name))?;
        }
        self.temporary = None;
        File::open(new)?.sync_all()
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary); // a destructor cannot report it
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(root: &Path, part: &str) -> Vec<PathBuf> {
        fs::read_dir(root.join(part)).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn a_finished_message_is_in_new_and_a_dropped_one_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let maildir = Maildir::open(folder.path(), "mx/1:a").unwrap();
        let mut abandoned = maildir.begin().unwrap();
        abandoned.write(b"half").unwrap();
        drop(abandoned);
        let mut one = maildir.begin().unwrap();
        let two = maildir.begin().unwrap();
        assert_ne!(one.name(), two.name());
        one.write(b"whole").unwrap();
        assert_eq!(files(folder.path(), "new").len(), 0);
        one.finish().unwrap();
        two.finish().unwrap();
        let new = files(folder.path(), "new");
        assert_eq!(new.len(), 2);
        assert!(new.iter().any(|path| fs::read(path).unwrap() == b"whole"));
        assert_eq!(files(folder.path(), "tmp").len(), 0);
    }
}
