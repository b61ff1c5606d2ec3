//! Verification: reads a process's credentials from the kernel and compares them with the expected ones.
//!
//! /proc/pid/status is opened before the root is replaced. The kernel generates the file at every read, so the same
//! descriptor always shows the current state.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use portreeve_protocol::List;
use portreeve_protocol::status::Credentials;

use super::seccomp::Support;
use crate::failure::{Exit, Failure};
use crate::inject;

const STEP: &str = "verify";

/// What to do without /proc.
const MOUNT_PROC: &str = "mount /proc of the broker's own namespace of process ids (mount -t proc proc /proc) where portreeved starts";

/// Fails unless /proc shows the processes of this namespace: with it, the broker forks and verifies what the kernel enforces.
pub fn require_proc() -> Result<(), Failure> {
    let own = std::fs::read_link("/proc/self");
    let what = match &own {
        Ok(pid) if pid.as_os_str() == std::process::id().to_string().as_str() => return Ok(()),
        Ok(_) => "/proc shows the processes of another namespace of process ids".to_owned(),
        Err(error) => format!("/proc is not mounted, or not readable: {error}"),
    };
    Err(Failure::new(Exit::OsError, "proc", what, MOUNT_PROC))
}

/// An open /proc/pid/status.
#[derive(Debug)]
pub struct ProcStatus {
    file: File,
    path: String,
}

impl ProcStatus {
    /// Opens the status of a process, by its id or `self`.
    pub fn open(pid: &str) -> Result<Self, Failure> {
        let path = format!("/proc/{pid}/status");
        let file = File::open(&path).map_err(|error| {
            let what = format_args!("cannot open {path}: {error}");
            Failure::new(Exit::OsError, STEP, what, MOUNT_PROC)
        })?;
        Ok(Self { file, path })
    }

    /// The process's current credentials.
    pub fn read(&self) -> Result<Credentials, Failure> {
        parse(&self.text()?)
            .ok_or_else(|| Failure::os(STEP, &format!("parse {}", self.path), "a field is missing"))
    }

    /// Fails unless the process is single-threaded: the file describes one thread.
    pub fn expect_one_thread(&self, process: &str) -> Result<(), Failure> {
        let text = self.text()?;
        let threads = field(&text, "Threads").unwrap_or("an unknown number of");
        if threads == "1" {
            return Ok(());
        }
        Err(mismatch(process, format_args!("it has {threads} threads, not 1")))
    }

    /// Whether the kernel has seccomp.
    pub fn seccomp_support(&self) -> Result<Support, Failure> {
        let text = self.text()?;
        // The last line of a status that was read as a whole.
        if field(&text, "nonvoluntary_ctxt_switches").is_none() {
            return Err(Failure::os(STEP, &format!("parse {}", self.path), "it is not complete"));
        }
        Ok(match field(&text, "Seccomp").filter(|_| inject::kernel_has_seccomp()) {
            Some(_) => Support::Present,
            None => Support::Missing,
        })
    }

    fn text(&self) -> Result<String, Failure> {
        // About 1.5 kB; with very many groups it is longer, and only the list of groups is truncated.
        let mut buffer = vec![0; 32 * 1024];
        let length = self
            .file
            .read_at(&mut buffer, 0)
            .map_err(|error| Failure::os(STEP, &format!("read {}", self.path), error))?;
        Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
    }

    /// Fails unless the process has exactly these credentials, and names the difference.
    pub fn expect(&self, process: &str, expected: &Credentials) -> Result<Credentials, Failure> {
        let actual = self.read()?;
        if actual == *expected {
            return Ok(actual);
        }
        Err(mismatch(process, format_args!("the kernel reports {actual:?}, expected {expected:?}")))
    }
}

/// The process differs from what the broker set.
fn mismatch(process: &str, difference: fmt::Arguments<'_>) -> Failure {
    let problem = format_args!("confining the {process} failed: {difference}");
    Failure::new(
        Exit::OsError,
        STEP,
        problem,
        "check whether a security module or a debugger changes the process",
    )
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn numbers<const N: usize>(value: &str) -> Option<[u32; N]> {
    let numbers: Option<Vec<u32>> = value.split_whitespace().map(|word| word.parse().ok()).collect();
    numbers?.try_into().ok()
}

fn parse(text: &str) -> Option<Credentials> {
    let field = |name: &str| field(text, name);
    let set = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
    let groups = field("Groups")?.split_whitespace().map_while(|word| word.parse().ok());
    Some(Credentials {
        uid: numbers(field("Uid")?)?,
        gid: numbers(field("Gid")?)?,
        groups: List::truncated(groups),
        inheritable: set("CapInh")?,
        permitted: set("CapPrm")?,
        effective: set("CapEff")?,
        bounding: set("CapBnd")?,
        ambient: set("CapAmb")?,
        no_new_privs: field("NoNewPrivs")? == "1",
        // A kernel without seccomp lacks this line.
        seccomp: field("Seccomp").map_or(Some(0), |value| value.parse().ok())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_reads_its_own_credentials() {
        let status = ProcStatus::open("self").unwrap();
        let credentials = status.read().unwrap();
        assert_eq!(credentials.uid[1], nix::unistd::geteuid().as_raw());
        assert!(status.expect("test", &credentials).is_ok());
        let other = Credentials { no_new_privs: !credentials.no_new_privs, ..credentials };
        assert!(status.expect("test", &other).is_err());
    }

    #[test]
    fn an_incomplete_status_is_not_parsed() {
        assert!(parse("Uid:\t0\t0\t0\t0\n").is_none());
    }
}
