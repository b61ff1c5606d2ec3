//! The system call filter: what is not on the list of a serving broker ends it.
//!
//! Promises: after [`install`] this process makes the calls of [`super::syscalls`] and no others; a few that the C
//! library makes by itself are refused, any other ends the process by SIGSYS, which no attacker can try twice and
//! the audit log names. Touches this process for good, all its threads. Sources: seccomp(2).

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use libc::{EACCES, EINVAL, ENOSYS};
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

use super::syscalls::{
    ALWAYS, Check, LIMITS, NO_LIMITS, REFUSED, REFUSED_WITHOUT_SOCKET_FILES, Rule, SOCKET_FILES,
};
use super::syscalls_of_reader::{READER, REFUSED_TO_READER};
use crate::failure::Failure;

const STEP: &str = "seccomp";

/// What the broker will do, from its configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeccompNeeds {
    /// Unix sockets are bound and their files removed at run time.
    pub socket_files: bool,
    /// Limits of peers are set at run time.
    pub limits: bool,
}

/// What the kernel says that it enforces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The filter is in force.
    Enforced {
        /// How many system calls are allowed.
        calls: usize,
    },
    /// The kernel was built without it.
    Absent,
}

impl Seccomp {
    /// What is not enforced, as a sentence for the operator; `None` where nothing is lacking.
    pub fn lacking(&self) -> Option<String> {
        matches!(self, Seccomp::Absent)
            .then(|| "no seccomp: the kernel was built without CONFIG_SECCOMP_FILTER".to_owned())
    }
}

/// As `status` tells it.
impl fmt::Display for Seccomp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seccomp::Enforced { calls } => write!(out, "seccomp: {calls} system calls allowed"),
            Seccomp::Absent => out.write_str("no seccomp"),
        }
    }
}

/// Puts the filter in force for all threads. Nothing can take it off again.
///
/// # Errors
/// The filter cannot be made, or the kernel refuses it; one without seccomp is no error but is told in the result.
pub fn install(needs: &SeccompNeeds) -> Result<Seccomp, Failure> {
    let (allowed, refused) = lists(*needs);
    install_lists(allowed, refused)
}

/// Puts the reader's filter in force.
///
/// # Errors
/// As [`install`].
pub fn install_for_reader() -> Result<Seccomp, Failure> {
    install_lists(READER.iter().collect(), REFUSED_TO_READER.iter().collect())
}

fn install_lists(allowed: Vec<&Rule>, refused: Vec<&Rule>) -> Result<Seccomp, Failure> {
    let calls = allowed.len();
    let both = || -> Result<(), Error> {
        // Of two filters the stricter answer counts; the refusing one is the first, for the other forbids a second.
        let refusing = compile(&refused, SeccompAction::Allow, SeccompAction::Errno(EACCES.unsigned_abs()))?;
        let allowing = allowed.into_iter().chain(refused).collect::<Vec<_>>();
        let allowing = compile(&allowing, SeccompAction::KillProcess, SeccompAction::Allow)?;
        apply_filter_all_threads(&refusing)?;
        apply_filter_all_threads(&allowing)
    };
    match both() {
        Ok(()) => Ok(Seccomp::Enforced { calls }),
        Err(Error::Seccomp(error)) if is_absent(&error) => Ok(Seccomp::Absent),
        Err(error) => Err(Failure::os(STEP, "installing the system call filter", error)),
    }
}

/// What [`install`] would give: that the kernel has no filters is all that could be in its way. Asks the kernel
/// whether it knows the filter's last resort (SECCOMP_GET_ACTION_AVAIL, Linux 4.14) and changes nothing.
pub fn probe(needs: &SeccompNeeds) -> Seccomp {
    probe_of(allowed(needs).count())
}

/// What [`install_for_reader`] would give.
pub fn probe_for_reader() -> Seccomp {
    probe_of(READER.len())
}

fn probe_of(calls: usize) -> Seccomp {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads the one number that the pointer leads to.
    let known =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    match known {
        -1 if is_absent(&io::Error::last_os_error()) => Seccomp::Absent,
        // Whatever else is wrong with it, the start will say.
        _ => Seccomp::Enforced { calls },
    }
}

/// The calls that stay allowed, each by its name in syscalls(2) and with what it is for.
pub fn allowed(needs: &SeccompNeeds) -> impl Iterator<Item = (&'static str, &'static str)> {
    lists(*needs).0.into_iter().map(|rule| (rule.name.trim_start_matches("SYS_"), rule.why))
}

/// The same of the reader.
pub fn allowed_to_reader() -> impl Iterator<Item = (&'static str, &'static str)> {
    READER.iter().map(|rule| (rule.name.trim_start_matches("SYS_"), rule.why))
}

/// Whether the kernel does not know the call, or was built without filters.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOSYS | EINVAL))
}

/// The allowed calls, and the refused ones.
fn lists(needs: SeccompNeeds) -> (Vec<&'static Rule>, Vec<&'static Rule>) {
    let limits = if needs.limits { LIMITS } else { NO_LIMITS };
    let (files, refused) =
        if needs.socket_files { (SOCKET_FILES, &[][..]) } else { (&[][..], REFUSED_WITHOUT_SOCKET_FILES) };
    (ALWAYS.iter().chain(limits).chain(files).collect(), REFUSED.iter().chain(refused).collect())
}

fn compile(
    rules: &[&Rule],
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let mut compiled = BTreeMap::new();
    for rule in rules {
        let alternatives: Result<Vec<_>, _> = rule.any_of.iter().map(|checks| alternative(checks)).collect();
        compiled.insert(rule.number, alternatives?);
    }
    SeccompFilter::new(compiled, otherwise, listed, TargetArch::try_from(std::env::consts::ARCH)?)?.try_into()
}

fn alternative(checks: &[Check]) -> Result<SeccompRule, BackendError> {
    let bits = |value: i32| u64::from(value.cast_unsigned());
    let conditions = checks.iter().map(|check| match *check {
        Check::Is(argument, value) => {
            SeccompCondition::new(argument, Length::Dword, Compare::Eq, bits(value))
        }
        Check::Bits { argument, mask, value } => {
            SeccompCondition::new(argument, Length::Dword, Compare::MaskedEq(bits(mask)), bits(value))
        }
        Check::Zero(argument) => SeccompCondition::new(argument, Length::Qword, Compare::Eq, 0),
        Check::OwnProcess(argument) => {
            SeccompCondition::new(argument, Length::Dword, Compare::Eq, u64::from(std::process::id()))
        }
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_NEEDS: [SeccompNeeds; 4] = [
        SeccompNeeds { socket_files: false, limits: false },
        SeccompNeeds { socket_files: false, limits: true },
        SeccompNeeds { socket_files: true, limits: false },
        SeccompNeeds { socket_files: true, limits: true },
    ];

    #[test]
    fn no_call_is_listed_twice_and_each_says_why() {
        for needs in ALL_NEEDS {
            assert!(allowed(&needs).all(|(name, why)| !name.starts_with("SYS_") && !why.is_empty()));
            let (allowed, refused) = lists(needs);
            let mut numbers: Vec<_> =
                allowed.iter().chain(&refused).map(|rule| (rule.number, rule.name)).collect();
            numbers.sort_unstable();
            for pair in numbers.windows(2) {
                assert_ne!(pair[0].0, pair[1].0, "{} and {}", pair[0].1, pair[1].1);
            }
        }
    }

    #[test]
    fn no_alternative_of_a_call_is_redundant() {
        for rule in lists(ALL_NEEDS[3]).0 {
            let mut compiled: Vec<_> =
                rule.any_of.iter().map(|checks| format!("{:?}", alternative(checks))).collect();
            assert!(
                rule.any_of.iter().all(|checks| !checks.is_empty()),
                "{} lets everything pass",
                rule.name
            );
            compiled.sort_unstable();
            let before = compiled.len();
            compiled.dedup();
            assert_eq!(compiled.len(), before, "{}", rule.name);
        }
    }

    #[test]
    fn nothing_that_opens_runs_forks_mounts_traces_or_gains_is_allowed() {
        let never = [
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_connect,
            libc::SYS_kill,
            libc::SYS_bpf,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_capset,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_setgroups,
            libc::SYS_memfd_create,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_open_by_handle_at,
            libc::SYS_pidfd_getfd,
            libc::SYS_personality,
            libc::SYS_seccomp,
            libc::SYS_mknodat,
            libc::SYS_linkat,
            libc::SYS_symlinkat,
            libc::SYS_renameat2,
            libc::SYS_mkdirat,
            libc::SYS_sendmmsg,
            libc::SYS_shmat,
        ];
        for needs in ALL_NEEDS {
            for rule in lists(needs).0 {
                assert!(!never.contains(&rule.number), "{}", rule.name);
            }
        }
    }
}
