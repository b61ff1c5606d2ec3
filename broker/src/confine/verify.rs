//! What a process really holds, read from the kernel and compared with what was configured.
//!
//! The descriptor on /proc/pid/status is opened before there is an empty root; the kernel renders the file
//! anew at every read, so the same descriptor tells the state of the moment.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use portreeve_protocol::List;
use portreeve_protocol::status::Credentials;

use crate::failure::Failure;

const STEP: &str = "verify";

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
        let file = File::open(&path).map_err(|error| Failure::os(STEP, &format!("open {path}"), error))?;
        Ok(Self { file, path })
    }

    /// What the process holds now.
    pub fn read(&self) -> Result<Credentials, Failure> {
        parse(&self.text()?)
            .ok_or_else(|| Failure::os(STEP, &format!("parse {}", self.path), "a field is missing"))
    }

    /// Fails unless the process has one thread, so that what this file says of one is said of all.
    pub fn expect_one_thread(&self, process: &str) -> Result<(), Failure> {
        let text = self.text()?;
        let threads = field(&text, "Threads").unwrap_or("an unknown number of");
        if threads == "1" {
            return Ok(());
        }
        Err(Failure::os(
            STEP,
            &format!("confining the {process}"),
            format_args!("it has {threads} threads, not 1"),
        ))
    }

    fn text(&self) -> Result<String, Failure> {
        // About 1.5 kB; a process with very many groups has more, and then what is cut off is only theirs.
        let mut buffer = vec![0; 32 * 1024];
        let length = self
            .file
            .read_at(&mut buffer, 0)
            .map_err(|error| Failure::os(STEP, &format!("read {}", self.path), error))?;
        Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
    }

    /// Fails unless the process holds exactly this, and tells the first field that differs.
    pub fn expect(&self, process: &str, expected: &Credentials) -> Result<Credentials, Failure> {
        let found = self.read()?;
        if found == *expected {
            return Ok(found);
        }
        Err(Failure::os(
            STEP,
            &format!("confining the {process}"),
            format_args!("the kernel says {found:?} where {expected:?} was configured"),
        ))
    }
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
        groups: List::first_of(groups),
        inheritable: set("CapInh")?,
        permitted: set("CapPrm")?,
        effective: set("CapEff")?,
        bounding: set("CapBnd")?,
        ambient: set("CapAmb")?,
        no_new_privs: field("NoNewPrivs")? == "1",
        // A kernel without seccomp does not print the line.
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
    fn a_status_that_lacks_a_field_is_no_status() {
        assert!(parse("Uid:\t0\t0\t0\t0\n").is_none());
    }
}
