//! Kernels that lack a lock, made by refusing its system calls to the broker.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Host, binaries};

/// What the kernel under a broker can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Everything that this machine's can.
    Full,
    /// It has no Landlock.
    WithoutLandlock,
    /// It was built without system call filters.
    WithoutSeccomp,
    /// It has neither.
    WithoutBoth,
}

const LANDLOCK: &str = "landlock_create_ruleset=ENOSYS";
const SECCOMP: &[&str] = &["seccomp=ENOSYS", "prctl:22=EINVAL"];

impl Kernel {
    /// What it refuses, as `deny_syscalls` takes it.
    pub fn denied_calls(self) -> Vec<&'static str> {
        let landlock = matches!(self, Self::WithoutLandlock | Self::WithoutBoth).then_some(LANDLOCK);
        let seccomp = matches!(self, Self::WithoutSeccomp | Self::WithoutBoth).then_some(SECCOMP);
        // The filters that refuse are installed by the very calls that are refused last.
        landlock.into_iter().chain(seccomp.into_iter().flatten().copied()).collect()
    }

    /// A command that runs a broker on it, for tests that change it.
    pub fn command(self, host: &Host, config: &Path) -> Command {
        command_denying(host, &self.denied_calls(), binaries::BROKER, config)
    }
}

/// The version of this kernel's Landlock, 0 where it has none or it is off; see landlock_create_ruleset(2).
pub fn landlock_abi() -> u32 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: no pointer is given; the flag asks for a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// A command that runs one of the brokers under test on a kernel that refuses these calls.
pub fn command_denying(host: &Host, refusals: &[&str], broker: &str, config: &Path) -> Command {
    let mut command = Command::new(host.binary(binaries::DENY_SYSCALLS));
    command.args(refusals).arg("--").arg(host.binary(broker)).arg("--config").arg(config);
    command.stdin(Stdio::null());
    command
}
