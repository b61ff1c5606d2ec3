//! Kernels without Landlock or seccomp, simulated by denying their system calls to the broker. A kernel without seccomp
//! shows none in /proc either; the hostile broker simulates that.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Host, binaries};

/// The features of the kernel that a broker runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// All features of this machine's kernel.
    Full,
    /// No Landlock.
    WithoutLandlock,
    /// No seccomp filters.
    WithoutSeccomp,
    /// Neither.
    WithoutBoth,
}

const LANDLOCK: &str = "landlock_create_ruleset=ENOSYS";
const SECCOMP: &[&str] = &["seccomp=ENOSYS", "prctl:22=EINVAL"];

impl Kernel {
    /// The system calls to deny, as arguments of `deny_syscalls`.
    pub fn denied_calls(self) -> Vec<&'static str> {
        let landlock = matches!(self, Self::WithoutLandlock | Self::WithoutBoth).then_some(LANDLOCK);
        let seccomp = matches!(self, Self::WithoutSeccomp | Self::WithoutBoth).then_some(SECCOMP);
        // Denied last: `deny_syscalls` installs its own filters by these calls.
        landlock.into_iter().chain(seccomp.into_iter().flatten().copied()).collect()
    }

    /// A command that runs a broker on this kernel, for tests that change it.
    pub fn command(self, host: &Host, config: &Path) -> Command {
        let lacks_seccomp = matches!(self, Self::WithoutSeccomp | Self::WithoutBoth);
        let broker = if lacks_seccomp { binaries::HOSTILE_BROKER } else { binaries::BROKER };
        let mut command = command_denying(host, &self.denied_calls(), broker, config);
        if lacks_seccomp {
            command.arg("--hide-seccomp");
        }
        command
    }
}

/// The ABI version of this kernel's Landlock, 0 if it is missing or disabled; see landlock_create_ruleset(2).
pub fn landlock_abi() -> u32 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: the pointer is null, which the flag requires; the kernel only returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// A command that runs one of the brokers under test with these system calls denied.
pub fn command_denying(host: &Host, refusals: &[&str], broker: &str, config: &Path) -> Command {
    let mut command = Command::new(host.binary(binaries::DENY_SYSCALLS));
    command.args(refusals).arg("--").arg(host.binary(broker)).arg("--config").arg(config);
    command.stdin(Stdio::null());
    command
}
