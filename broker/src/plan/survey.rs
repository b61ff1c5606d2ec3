//! What lies in the chroot that may surprise: set-user-id files and device nodes, by name.
//!
//! Reads directories and the kind of each file, by descriptor from the chroot down, and follows no link. Looks at
//! so many files and no more, since a spool may be in it.

use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, major, minor, openat2, statat};

use super::{Findings, Root};
use crate::config::{Config, Severity};

/// Files that are looked at.
const MAX_FILES: usize = 100_000;
/// Findings that are told by name.
const MAX_FOUND: usize = 32;

/// Character devices that give nothing away: null, zero, full, random and urandom. See
/// Documentation/admin-guide/devices.txt of the kernel.
const HARMLESS: [(u32, u32); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

/// Walks through the chroot, where there is one that could be opened.
pub fn survey(config: &Config, root: &Root, findings: &mut Findings) {
    let (Root::Chroot(directory), Some(chroot)) = (root, &config.security.chroot) else {
        return;
    };
    let mut survey = Survey::default();
    survey.walk(directory.as_fd());
    for (name, remark) in &survey.found {
        let path = chroot.value.join(name);
        let message = format!("{path:?} in the chroot is {}", remark.what);
        findings.tell(match remark.severity {
            Severity::Note => config.note(chroot.span, message, remark.help),
            Severity::Warning | Severity::Error => config.warning(chroot.span, message, remark.help),
        });
    }
    if survey.is_full() {
        let message = format!("only {} files of the chroot {:?} were looked at", survey.files, chroot.value);
        let help = "look for the others with find CHROOT -perm /6000 -o -type b -o -type c";
        findings.tell(config.note(chroot.span, message, help));
    }
    if survey.closed > 0 {
        let what = format!("the inside of {} directories in {:?}", survey.closed, chroot.value);
        findings.unseen(config, chroot.span, &what);
    }
}

/// What is to be said of one file.
struct Remark {
    severity: Severity,
    what: &'static str,
    help: &'static str,
}

#[derive(Default)]
struct Survey {
    files: usize,
    /// Directories that could not be read.
    closed: usize,
    found: Vec<(PathBuf, Remark)>,
}

impl Survey {
    fn is_full(&self) -> bool {
        self.files >= MAX_FILES || self.found.len() >= MAX_FOUND
    }

    fn walk(&mut self, root: BorrowedFd<'_>) {
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            if self.is_full() {
                return;
            }
            match self.directory(root, &path) {
                Ok(below) => waiting.extend(below),
                // Gone, or replaced by a link, since it was seen: not there.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {}
                Err(_) => self.closed += 1,
            }
        }
    }

    /// Looks at the files of one directory and gives the directories in it.
    fn directory(&mut self, root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<Vec<PathBuf>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let name = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let directory = openat2(root, name, flags, Mode::empty(), resolve)?;
        let mut below = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.files += 1;
            let Ok(stat) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                below.push(path);
            } else if let Some(remark) = remark(&stat) {
                self.found.push((path, remark));
            }
            if self.is_full() {
                break;
            }
        }
        Ok(below)
    }
}

fn remark(stat: &Stat) -> Option<Remark> {
    const SET_ID: u32 = 0o6000;
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    let (severity, what, help) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_mode & SET_ID != 0 => (
            Severity::Warning,
            "set-user-id or set-group-id",
            "chmod ug-s it: the worker gains nothing by it, but another process that enters the chroot may",
        ),
        FileType::CharacterDevice if HARMLESS.contains(&device) => {
            (Severity::Note, "a device node", "leave it only if the worker needs it: this kind is harmless")
        }
        FileType::CharacterDevice | FileType::BlockDevice => (
            Severity::Warning,
            "a device node",
            "remove it, or mount the chroot nodev: by it the worker may reach past the chroot",
        ),
        _ => return None,
    };
    Some(Remark { severity, what, help })
}
