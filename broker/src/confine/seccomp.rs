//! The seccomp filter: a system call that is not in the table ends the broker.
//!
//! Promises: after [`install`] this process can make only the calls of `syscalls`. A few calls that the C library
//! makes on its own fail with EACCES; any other call ends the process with SIGSYS, which the kernel's audit log records.
//! Touches all threads of this process, irrevocably. Sources: seccomp(2).

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use libc::{EACCES, EINVAL, ENOSYS};
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

use super::reader_syscalls::{READER, REFUSED_TO_READER};
use super::syscalls::{
    ALWAYS, Check, LIMITS, NO_LIMITS, REFUSED, REFUSED_WITHOUT_SOCKET_FILES, Rule, SOCKET_FILES,
};
use crate::failure::Failure;

const STEP: &str = "seccomp";

/// The optional features of the broker that need further system calls, from its configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeccompNeeds {
    /// Binding Unix sockets and removing their files at run time.
    pub socket_files: bool,
    /// Setting resource limits of peers at run time.
    pub limits: bool,
}

/// What the kernel enforces, as it reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The filter is active.
    Enforced {
        /// The number of allowed system calls.
        calls: usize,
    },
    /// The kernel was built without seccomp filters.
    Absent,
}

impl Seccomp {
    /// A sentence for the operator if the filter is not enforced.
    pub fn lacking(&self) -> Option<String> {
        matches!(self, Seccomp::Absent)
            .then(|| "no seccomp: the kernel was built without CONFIG_SECCOMP_FILTER".to_owned())
    }
}

/// The text in `status`.
impl fmt::Display for Seccomp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seccomp::Enforced { calls } => write!(out, "seccomp: {calls} system calls allowed"),
            Seccomp::Absent => out.write_str("no seccomp"),
        }
    }
}

/// Installs the filter for all threads, irrevocably.
///
/// # Errors
/// The filter cannot be compiled, or the kernel refuses it. A kernel without seccomp is not an error but is reported in
/// the result.
pub fn install(needs: &SeccompNeeds) -> Result<Seccomp, Failure> {
    let (allowed, refused) = lists(*needs);
    install_lists(allowed, refused)
}

/// Installs the reader's filter.
///
/// # Errors
/// As [`install`].
pub fn install_for_reader() -> Result<Seccomp, Failure> {
    install_lists(READER.iter().collect(), REFUSED_TO_READER.iter().collect())
}

fn install_lists(allowed: Vec<&Rule>, refused: Vec<&Rule>) -> Result<Seccomp, Failure> {
    let calls = allowed.len();
    let install_both = || -> Result<(), Error> {
        // Of two filters the stricter result counts. The one that returns EACCES comes first: the other one forbids installing
        // a second filter.
        let refusing = compile(&refused, SeccompAction::Allow, SeccompAction::Errno(EACCES.unsigned_abs()))?;
        let allowing = allowed.into_iter().chain(refused).collect::<Vec<_>>();
        let allowing = compile(&allowing, SeccompAction::KillProcess, SeccompAction::Allow)?;
        apply_filter_all_threads(&refusing)?;
        apply_filter_all_threads(&allowing)
    };
    match install_both() {
        Ok(()) => Ok(Seccomp::Enforced { calls }),
        Err(Error::Seccomp(error)) if is_absent(&error) => Ok(Seccomp::Absent),
        Err(error) => Err(Failure::os(STEP, "installing the system call filter", error)),
    }
}

/// The result that [`install`] would have. Asks the kernel whether it supports the action that ends the process
/// (SECCOMP_GET_ACTION_AVAIL, Linux 4.14) and changes nothing.
pub fn probe(needs: &SeccompNeeds) -> Seccomp {
    probe_of(allowed(needs).count())
}

/// The result that [`install_for_reader`] would have.
pub fn probe_for_reader() -> Seccomp {
    probe_of(READER.len())
}

fn probe_of(calls: usize) -> Seccomp {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one u32 through the pointer, which is valid.
    let known =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    match known {
        -1 if is_absent(&io::Error::last_os_error()) => Seccomp::Absent,
        // Any other error is reported at the start.
        _ => Seccomp::Enforced { calls },
    }
}

/// The allowed calls, each by its name in syscalls(2), with its purpose.
pub fn allowed(needs: &SeccompNeeds) -> impl Iterator<Item = (&'static str, &'static str)> {
    lists(*needs).0.into_iter().map(|rule| (rule.name.trim_start_matches("SYS_"), rule.why))
}

/// The same for the reader.
pub fn allowed_to_reader() -> impl Iterator<Item = (&'static str, &'static str)> {
    READER.iter().map(|rule| (rule.name.trim_start_matches("SYS_"), rule.why))
}

/// Whether the error means that the kernel lacks the call or seccomp filters.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOSYS | EINVAL))
}

/// Compiles the allowed and the refused calls.
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
            assert!(rule.any_of.iter().all(|checks| !checks.is_empty()), "{} allows everything", rule.name);
            compiled.sort_unstable();
            let before = compiled.len();
            compiled.dedup();
            assert_eq!(compiled.len(), before, "{}", rule.name);
        }
    }

    #[test]
    fn no_call_that_opens_executes_forks_mounts_traces_or_gains_privileges_is_allowed() {
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
