//! Searches the chroot for set-user-id files and device nodes.
//!
//! Reads directories and file types, by descriptor from the chroot down, and follows no link. The number of files is
//! bounded, since a mail spool may be inside.

use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::{Findings, Root};
use crate::config::{Config, Severity};
use crate::sys::directory::{self, FileType, Stat, major, minor};

/// The maximum number of files that are examined.
const MAX_FILES: usize = 100_000;
/// The maximum number of files that are reported.
const MAX_FINDINGS: usize = 32;

/// Harmless character devices: null, zero, full, random and urandom. See Documentation/admin-guide/devices.txt of the
/// kernel.
const HARMLESS: [(u32, u32); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

/// Examines the chroot, if there is one.
pub fn survey(config: &Config, root: &Root, findings: &mut Findings) {
    let (Root::Chroot(directory), Some(chroot)) = (root, &config.security.chroot) else {
        return;
    };
    let mut survey = Survey::default();
    survey.walk(directory.as_fd());
    for (name, finding) in &survey.findings {
        let path = chroot.value.join(name);
        let message = format!("{path:?} in the chroot is {}", finding.what);
        findings.add(match finding.severity {
            Severity::Note => config.note(chroot.span, message, finding.help),
            Severity::Warning | Severity::Error => config.warning(chroot.span, message, finding.help),
        });
    }
    if survey.is_full() {
        let message = format!("only {} files of the chroot {:?} were examined", survey.files, chroot.value);
        let help = "examine the others with: find CHROOT -perm /6000 -o -type b -o -type c";
        findings.add(config.note(chroot.span, message, help));
    }
    if survey.unreadable > 0 {
        let directories = if survey.unreadable == 1 { "directory" } else { "directories" };
        let what = format!("{} {directories} in the chroot {:?}", survey.unreadable, chroot.value);
        findings.no_permission(config, chroot.span, &what);
    }
}

/// The finding about one file.
struct FileFinding {
    severity: Severity,
    what: &'static str,
    help: &'static str,
}

#[derive(Default)]
struct Survey {
    files: usize,
    /// Directories that could not be read.
    unreadable: usize,
    findings: Vec<(PathBuf, FileFinding)>,
}

impl Survey {
    fn is_full(&self) -> bool {
        self.files >= MAX_FILES || self.findings.len() >= MAX_FINDINGS
    }

    fn walk(&mut self, root: BorrowedFd<'_>) {
        let mut queue = vec![PathBuf::new()];
        while let Some(path) = queue.pop() {
            if self.is_full() {
                return;
            }
            match self.directory(root, &path) {
                Ok(subdirectories) => queue.extend(subdirectories),
                // Removed, or replaced by a link, in the meantime.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {}
                Err(_) => self.unreadable += 1,
            }
        }
    }

    /// Examines the files of one directory and returns its subdirectories.
    fn directory(&mut self, root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<Vec<PathBuf>> {
        let opened = directory::open_beneath(root, path)?;
        let mut subdirectories = Vec::new();
        for name in directory::names(&opened)? {
            let name = name?;
            self.files += 1;
            let Ok(stat) = directory::stat(&opened, &name, false) else {
                continue;
            };
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                subdirectories.push(path);
            } else if let Some(finding) = finding(&stat) {
                self.findings.push((path, finding));
            }
            if self.is_full() {
                break;
            }
        }
        Ok(subdirectories)
    }
}

fn finding(stat: &Stat) -> Option<FileFinding> {
    const SET_ID: u32 = 0o6000;
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    let (severity, what, help) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_mode & SET_ID != 0 => (
            Severity::Warning,
            "set-user-id or set-group-id",
            "chmod ug-s it: it gives the worker no privilege, but it can give one to another process in the chroot",
        ),
        FileType::CharacterDevice if HARMLESS.contains(&device) => {
            (Severity::Note, "a device node", "keep it only if the worker needs it; this device is harmless")
        }
        FileType::CharacterDevice | FileType::BlockDevice => (
            Severity::Warning,
            "a device node",
            "remove it, or mount the chroot with nodev: through it the worker may access more than the chroot",
        ),
        _ => return None,
    };
    Some(FileFinding { severity, what, help })
}
