//! Confines the reader process: it can read files below the directories of the configuration, and nothing else.
//!
//! Runs once, in the reader, and is irrevocable. The reader keeps uid 0, because root owns the files, and no capability: it
//! reads what the file modes let root read, and can neither change a file nor affect another process.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, ROOT, setgroups, setresgid, setresuid, setsid};
use portreeve_protocol::status::Credentials;

use super::landlock::{self, Landlock, Listed};
use super::seccomp::{self, Seccomp};
use super::verify::ProcStatus;
use super::{limits, locks};
use crate::capability::{CapabilitySet, State};
use crate::failure::Failure;
use crate::inject;

const STEP: &str = "confining the reader";

/// The reader's restrictions.
#[derive(Debug)]
pub struct Confinement {
    /// The directories below which it can read.
    pub directories: Vec<PathBuf>,
    /// The seccomp mode of the broker at its start.
    pub seccomp: u8,
}

impl Confinement {
    /// Confines this process and returns a line for each restriction that /proc/self/status does not show.
    pub fn apply(&self) -> Result<Vec<String>, Failure> {
        let os = |call: &'static str| move |error: nix::Error| Failure::os(STEP, call, error);
        inject::point("reader.session")?;
        // A session of its own, so that signals of the terminal do not reach it. It ends when the broker ends.
        setsid().map_err(os("setsid"))?;
        let ending = SigSet::from_iter([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]);
        ending.thread_block().map_err(os("sigprocmask"))?;
        inject::point("reader.directories")?;
        let directories = self.open()?;
        inject::point("reader.identity")?;
        let group = Gid::from_raw(0);
        setgroups(&[]).map_err(os("setgroups"))?;
        setresgid(group, group, group).map_err(os("setresgid"))?;
        setresuid(ROOT, ROOT, ROOT).map_err(os("setresuid"))?;
        inject::point("reader.bounding")?;
        locks::bounding(CapabilitySet::default())?;
        inject::point("reader.securebits")?;
        locks::securebits()?;
        inject::point("reader.sets")?;
        locks::sets(&State::default())?;
        inject::point("reader.no_new_privs")?;
        locks::no_new_privs()?;
        inject::point("reader.private")?;
        limits::make_private()?;
        inject::point("reader.landlock")?;
        let support = ProcStatus::open("self")?.seccomp_support()?;
        let landlock = landlock::restrict_to_reading(&directories, Listed::read())?;
        drop(directories);
        inject::point("reader.seccomp")?;
        Ok(self.lines(&landlock, &seccomp::install_for_reader(support)?))
    }

    fn open(&self) -> Result<Vec<OwnedFd>, Failure> {
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
        let open = |path: &PathBuf| {
            let failed = |error| Failure::os(STEP, &format!("opening the directory {path:?}"), error);
            options.open(path).map(OwnedFd::from).map_err(failed)
        };
        self.directories.iter().map(open).collect()
    }

    /// The credentials that the kernel must report.
    ///
    /// # Errors
    /// The kernel's support of seccomp cannot be found out.
    pub fn expected(&self) -> Result<Credentials, Failure> {
        let filtered = seccomp::probe_for_reader()? != Seccomp::Absent;
        let seccomp = if filtered { 2 } else { self.seccomp };
        Ok(Credentials { no_new_privs: true, seccomp, ..Credentials::default() })
    }

    /// The lines that [`Confinement::apply`] will return on this kernel. Needs no privilege.
    pub fn predict(&self) -> Result<Vec<String>, Failure> {
        Ok(self.lines(&landlock::probe_reading(Listed::read())?, &seccomp::probe_for_reader()?))
    }

    fn lines(&self, landlock: &Landlock, seccomp: &Seccomp) -> Vec<String> {
        let securebits = format!("securebits {:#x}, locked", locks::SECUREBITS.bits());
        let landlock = match landlock {
            Landlock::Enforced { abi, .. } => {
                let count = self.directories.len();
                format!(
                    "Landlock ABI {abi}: reads below {count} directories, no other file, no TCP, no signals to other processes"
                )
            }
            other => other.to_string(),
        };
        vec![securebits, landlock, seccomp.to_string()]
    }
}
