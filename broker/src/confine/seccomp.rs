//! The seccomp filter: a system call that is not in the table ends the broker.
//!
//! Promises: after [`install`] this process can make only the calls of `syscalls`. A few calls that the C library
//! makes on its own fail with EACCES; any other call ends the process with SIGSYS, which the kernel's audit log records.
//! Touches all threads of this process, irrevocably. Sources: seccomp(2), proc_pid_status(5).
//!
//! Only a kernel without seccomp is reported as one: its /proc/self/status has no line `Seccomp`, and the call fails with
//! ENOSYS or EINVAL. On any other kernel these errors come from the filter of a container or a service manager, and are
//! failures.

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
use super::verify::ProcStatus;
use crate::config::Resources;
use crate::failure::{Exit, Failure};

const STEP: &str = "seccomp";

/// The optional features of the broker that need further system calls, from its configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeccompNeeds {
    /// Binding Unix sockets and removing their files at run time.
    pub socket_files: bool,
    /// Setting limits of these resources for peers at run time.
    pub limits: Resources,
}

/// What the kernel enforces, as it reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The filter is active.
    Enforced {
        /// The number of allowed system calls.
        calls: usize,
    },
    /// The kernel was built without seccomp.
    Absent,
}

impl Seccomp {
    /// A sentence for the operator if the filter is not enforced.
    pub fn lacking(&self) -> Option<String> {
        matches!(self, Seccomp::Absent)
            .then(|| "no seccomp: the kernel was built without CONFIG_SECCOMP".to_owned())
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

/// Installs the filter for all threads, irrevocably. `support` is what /proc/self/status shows.
///
/// # Errors
/// The filter cannot be compiled, or the kernel or an outer filter refuses it. A kernel without seccomp is not an error
/// but is reported in the result.
pub fn install(needs: &SeccompNeeds, support: Support) -> Result<Seccomp, Failure> {
    let (allowed, refused) = lists(*needs);
    install_lists(allowed, refused, needs.limits, support)
}

/// Installs the reader's filter.
///
/// # Errors
/// As [`install`].
pub fn install_for_reader(support: Support) -> Result<Seccomp, Failure> {
    install_lists(READER.iter().collect(), REFUSED_TO_READER.iter().collect(), Resources::NONE, support)
}

fn install_lists(
    allowed: Vec<&Rule>,
    refused: Vec<&Rule>,
    limits: Resources,
    support: Support,
) -> Result<Seccomp, Failure> {
    let calls = allowed.len();
    let compile_and_apply = || apply_filter_all_threads(&program(&allowed, &refused, limits)?);
    match compile_and_apply() {
        Ok(()) => Ok(Seccomp::Enforced { calls }),
        Err(Error::Seccomp(error)) => match support.failure(&error, "installing the system call filter") {
            None => Ok(Seccomp::Absent),
            Some(failure) => Err(failure),
        },
        Err(error) => Err(Failure::os(STEP, "compiling the system call filter", error)),
    }
}

/// The result that [`install`] would have. Asks the kernel whether it supports the action that ends the process
/// (SECCOMP_GET_ACTION_AVAIL, Linux 4.14) and changes nothing.
///
/// # Errors
/// The kernel has seccomp, and the call fails: an outer filter denies it.
pub fn probe(needs: &SeccompNeeds) -> Result<Seccomp, Failure> {
    probe_of(allowed(needs).count())
}

/// The result that [`install_for_reader`] would have.
///
/// # Errors
/// As [`probe`].
pub fn probe_for_reader() -> Result<Seccomp, Failure> {
    probe_of(READER.len())
}

fn probe_of(calls: usize) -> Result<Seccomp, Failure> {
    let support = ProcStatus::open("self")?.seccomp_support()?;
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one u32 through the pointer, which is valid.
    let known =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    if known != -1 {
        return Ok(Seccomp::Enforced { calls });
    }
    match support.failure(&io::Error::last_os_error(), "probing seccomp(2)") {
        None => Ok(Seccomp::Absent),
        Some(failure) => Err(failure),
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

/// Whether the kernel has seccomp, as /proc/self/status shows: it has the line `Seccomp` on exactly these kernels. A kernel
/// with networking that has seccomp has its filters too (CONFIG_SECCOMP_FILTER).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// The line is there.
    Present,
    /// The line is missing.
    Missing,
}

impl Support {
    /// The failure of a call with this error; `None` if the kernel has no seccomp.
    fn failure(self, error: &io::Error, call: &str) -> Option<Failure> {
        let is_unknown = matches!(error.raw_os_error(), Some(ENOSYS | EINVAL));
        match self {
            Support::Missing if is_unknown => None,
            Support::Present if is_unknown => Some(Failure::new(
                Exit::OsError,
                STEP,
                format_args!(
                    "{call} failed: {error}: the kernel has seccomp (/proc/self/status), so the system call filter of a \
                     container or of the service manager denies the call"
                ),
                "allow seccomp(2) and prctl(2) in that filter",
            )),
            _ => Some(Failure::os(STEP, call, error)),
        }
    }
}

/// The allowed and the refused calls.
fn lists(needs: SeccompNeeds) -> (Vec<&'static Rule>, Vec<&'static Rule>) {
    let limits = if needs.limits == Resources::NONE { NO_LIMITS } else { LIMITS };
    let (files, refused) =
        if needs.socket_files { (SOCKET_FILES, &[][..]) } else { (&[][..], REFUSED_WITHOUT_SOCKET_FILES) };
    (ALWAYS.iter().chain(limits).chain(files).collect(), REFUSED.iter().chain(refused).collect())
}

/// The whole filter: one program, which the kernel executes faster than several.
fn program(allowed: &[&Rule], refused: &[&Rule], limits: Resources) -> Result<BpfProgram, BackendError> {
    use SeccompAction::{Allow, Errno, KillProcess};
    let eacces = || Errno(EACCES.unsigned_abs());
    let has_checks = |rule: &&&Rule| !rule.any_of.is_empty();
    let has_none = |rule: &&&Rule| rule.any_of.is_empty();
    // From Linux 5.11 on, the kernel allows calls without checks before it executes the program, so those with checks come
    // first.
    let parts = [
        compile(allowed.iter().filter(has_checks), limits, Allow, KillProcess)?,
        compile(allowed.iter().filter(has_none), limits, Allow, KillProcess)?,
        compile(refused.iter().filter(has_checks), limits, eacces(), Allow)?,
        compile(refused.iter().filter(has_none), limits, eacces(), KillProcess)?,
    ];
    let mut program = BpfProgram::new();
    for part in parts {
        // The last instruction of a part decides about calls that it does not list: the next part shall do that.
        program.pop();
        program.extend(part);
    }
    Ok(program)
}

/// A program that lists these calls. Its result is `matching` if the checks of any alternative hold, otherwise, and for calls
/// that it does not list, `otherwise`.
fn compile<'r>(
    rules: impl Iterator<Item = &'r &'r Rule>,
    limits: Resources,
    matching: SeccompAction,
    otherwise: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let mut compiled = BTreeMap::new();
    for rule in rules {
        let is_needed = |checks: &&&[Check]| {
            checks
                .iter()
                .all(|check| !matches!(check, Check::PermittedResource(_, it) if !limits.has_number(*it)))
        };
        let alternatives: Result<Vec<_>, _> =
            rule.any_of.iter().filter(is_needed).map(|checks| alternative(checks)).collect();
        let alternatives = alternatives?;
        // Without an alternative the call would always match.
        if rule.any_of.is_empty() || !alternatives.is_empty() {
            compiled.insert(rule.number, alternatives);
        }
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(compiled, otherwise, matching, arch)?.try_into()
}

fn alternative(checks: &[Check]) -> Result<SeccompRule, BackendError> {
    let bits = |value: i32| u64::from(value.cast_unsigned());
    let is = |argument, value| SeccompCondition::new(argument, Length::Dword, Compare::Eq, value);
    let is_not = |argument, value| SeccompCondition::new(argument, Length::Dword, Compare::Ne, value);
    let own = u64::from(std::process::id());
    let conditions = checks.iter().flat_map(|check| match *check {
        Check::Is(argument, value) => vec![is(argument, bits(value))],
        Check::IsNot(argument, value) => vec![is_not(argument, bits(value))],
        Check::Bits { argument, mask, value } => {
            let masked = Compare::MaskedEq(bits(mask));
            vec![SeccompCondition::new(argument, Length::Dword, masked, bits(value))]
        }
        Check::Zero(argument) => vec![SeccompCondition::new(argument, Length::Qword, Compare::Eq, 0)],
        Check::OwnProcess(argument) => vec![is(argument, own)],
        Check::OtherProcess(argument) => vec![is_not(argument, 0), is_not(argument, own)],
        Check::PermittedResource(argument, resource) => vec![is(argument, u64::from(resource))],
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_that_shows_no_seccomp_is_without_it() {
        for (support, errno, is_absent) in [
            (Support::Missing, ENOSYS, true),
            (Support::Missing, EINVAL, true),
            (Support::Missing, libc::EPERM, false),
            (Support::Present, ENOSYS, false),
            (Support::Present, EINVAL, false),
            (Support::Present, libc::EPERM, false),
        ] {
            let failure = support.failure(&io::Error::from_raw_os_error(errno), "the call");
            assert_eq!(failure.is_none(), is_absent, "{support:?} {errno} {failure:?}");
        }
    }

    const ALL_NEEDS: [SeccompNeeds; 4] = [
        SeccompNeeds { socket_files: false, limits: Resources::NONE },
        SeccompNeeds { socket_files: false, limits: Resources::ALL },
        SeccompNeeds { socket_files: true, limits: Resources::NONE },
        SeccompNeeds { socket_files: true, limits: Resources::ALL },
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
