//! Landlock: restrictions that the kernel enforces on this process in addition to capabilities and policy.
//!
//! Promises: no file can be opened, read, executed, created or removed, except sockets in the given directories; TCP can
//! be bound to the given ports only and cannot connect; no signal and no connection to an abstract Unix socket leaves the
//! process. Restrictions that the running kernel does not support are reported. Touches this process and its children,
//! irrevocably. Sources: landlock(7), and Documentation/userspace-api/landlock.rst of the kernel.

use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, RestrictionStatus,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use crate::failure::Failure;
use crate::policy::merged_ports;

const STEP: &str = "landlock";

/// The newest Landlock ABI that is used, that of Linux 6.15. Later ones are untested.
const NEWEST_ABI: ABI = ABI::V7;

/// The actions that remain allowed.
#[derive(Clone, Copy, Debug)]
pub struct Permitted<'a, D> {
    /// TCP ports that can be bound, from the policy; port 0 means a port chosen by the kernel. UDP is not restricted:
    /// Landlock supports it only since Linux 7.2.
    pub tcp_ports: &'a [RangeInclusive<u16>],
    /// Directories in which Unix sockets can be created and removed.
    pub socket_directories: &'a [D],
}

/// What the kernel enforces, as it reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// All requested restrictions.
    Enforced {
        /// The Landlock ABI in use.
        abi: u32,
        /// Whether binding TCP is restricted to allowed ports.
        bind: Bind,
    },
    /// Some restrictions: the kernel is older than Linux 6.12.
    Partial {
        /// The kernel's Landlock ABI.
        abi: u32,
        /// The restrictions that are not enforced, for the operator.
        lacking: Vec<&'static str>,
    },
    /// None, with the cause.
    Absent(String),
}

impl Landlock {
    /// Whether binding TCP is restricted to allowed ports, which needs Landlock ABI 4.
    pub fn limits_tcp(&self) -> bool {
        match self {
            Landlock::Enforced { bind, .. } => *bind != Bind::EveryPort,
            Landlock::Partial { abi, .. } => *abi >= 4,
            Landlock::Absent(_) => false,
        }
    }

    /// The restrictions that are not enforced, as a sentence; `None` if all are.
    pub fn lacking(&self) -> Option<String> {
        match self {
            Landlock::Enforced { .. } => None,
            Landlock::Partial { abi, lacking } => {
                Some(format!("Landlock ABI {abi} does not restrict {}", lacking.join(", ")))
            }
            Landlock::Absent(why) => Some(format!("no Landlock: {why}")),
        }
    }
}

/// The text in `status`.
impl fmt::Display for Landlock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Landlock::Enforced { abi, bind } => {
                write!(
                    out,
                    "Landlock ABI {abi}: no files, no TCP connect, TCP bind to {bind}, no signals to other processes"
                )
            }
            Landlock::Partial { abi, .. } => write!(out, "Landlock ABI {abi}, partially enforced"),
            Landlock::Absent(_) => out.write_str("no Landlock"),
        }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bind::Ports(1) => out.write_str("1 port"),
            Bind::Ports(count) => write!(out, "{count} ports"),
            Bind::EveryPort => out.write_str("every port"),
        }
    }
}

/// The ports to which binding TCP is restricted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// This many ports.
    Ports(u32),
    /// Not restricted: the policy allows every port.
    EveryPort,
}

/// Restricts this process, which must be single-threaded, and its children.
///
/// # Errors
/// The call that failed. A kernel without Landlock, or with an older one, is not an error but is reported in the result.
pub fn restrict<D: AsFd>(permitted: Permitted<'_, D>, listed: Listed) -> Result<Landlock, Failure> {
    let bind = bind(permitted.tcp_ports);
    let status =
        apply(permitted, bind).map_err(|error| Failure::os(STEP, "restricting the broker", error))?;
    Ok(to_landlock(&absence(listed), status.landlock, &status.ruleset, bind))
}

/// Restricts this process, which must be single-threaded, to reading files below these directories; no TCP, no signals
/// and no abstract Unix sockets.
///
/// # Errors
/// As [`restrict`].
pub fn restrict_to_reading<D: AsFd>(directories: &[D], listed: Listed) -> Result<Landlock, Failure> {
    let apply = || -> Result<RestrictionStatus, RulesetError> {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST_ABI))?
            .handle_access(AccessNet::from_all(NEWEST_ABI))?
            .scope(Scope::from_all(NEWEST_ABI))?
            .create()?;
        for directory in directories {
            ruleset =
                ruleset.add_rule(PathBeneath::new(directory, AccessFs::ReadFile | AccessFs::ReadDir))?;
        }
        ruleset.restrict_self()
    };
    let status = apply().map_err(|error| Failure::os(STEP, "restricting the reader", error))?;
    Ok(to_landlock(&absence(listed), status.landlock, &status.ruleset, Bind::Ports(0)))
}

/// Lets this process and its children signal only each other: the worker cannot signal its launcher. Changes nothing on a
/// kernel without Landlock or before Linux 6.12. See landlock(7), LANDLOCK_SCOPE_SIGNAL.
///
/// # Errors
/// The call that failed.
pub fn scope_signals() -> Result<(), RulesetError> {
    Ruleset::default().scope(Scope::Signal)?.create()?.restrict_self().map(drop)
}

/// The result that [`restrict_to_reading`] would have; see [`probe`].
///
/// # Errors
/// As [`restrict`].
pub fn probe_reading(listed: Listed) -> Result<Landlock, Failure> {
    on_a_thread(|| restrict_to_reading(&[] as &[BorrowedFd<'_>], listed))
}

/// The result that [`restrict`] would have. Tried on a temporary thread: Landlock applies per thread.
///
/// # Errors
/// As [`restrict`].
pub fn probe(tcp_ports: &[RangeInclusive<u16>], listed: Listed) -> Result<Landlock, Failure> {
    let permitted = Permitted { tcp_ports, socket_directories: &[] as &[BorrowedFd<'_>] };
    on_a_thread(|| restrict(permitted, listed))
}

fn on_a_thread(restrict: impl FnOnce() -> Result<Landlock, Failure> + Send) -> Result<Landlock, Failure> {
    let result = std::thread::scope(|scope| scope.spawn(restrict).join());
    result.unwrap_or_else(|_| Err(Failure::os(STEP, "probing the kernel", "the probing thread panicked")))
}

fn bind(ranges: &[RangeInclusive<u16>]) -> Bind {
    let count = u32::try_from(ports(ranges).count()).unwrap_or(u32::MAX);
    if ports(ranges).filter(|port| *port != 0).count() == usize::from(u16::MAX) {
        Bind::EveryPort
    } else {
        Bind::Ports(count)
    }
}

/// Every port of the ranges, once.
fn ports(ranges: &[RangeInclusive<u16>]) -> impl Iterator<Item = u16> {
    merged_ports(ranges.to_vec()).into_iter().flatten()
}

fn apply<D: AsFd>(permitted: Permitted<'_, D>, bind: Bind) -> Result<RestrictionStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST_ABI))?
        .handle_access(AccessNet::ConnectTcp)?
        .scope(Scope::from_all(NEWEST_ABI))?;
    if bind != Bind::EveryPort {
        ruleset = ruleset.handle_access(AccessNet::BindTcp)?;
    }
    let mut ruleset = ruleset.create()?;
    if bind != Bind::EveryPort {
        for port in ports(permitted.tcp_ports) {
            ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
        }
    }
    let sockets: BitFlags<AccessFs> = AccessFs::MakeSock | AccessFs::RemoveFile;
    for directory in permitted.socket_directories {
        ruleset = ruleset.add_rule(PathBeneath::new(directory, sockets))?;
    }
    ruleset.restrict_self()
}

/// Whether the kernel lists Landlock among its active security modules, in the file `lsm` of securityfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// It does.
    Active,
    /// It does not.
    Inactive,
    /// The file is not there: securityfs is not mounted, as in many containers.
    Unknown,
}

impl Listed {
    /// Reads the file.
    pub fn read() -> Self {
        match std::fs::read_to_string("/sys/kernel/security/lsm") {
            Ok(modules) if modules.trim().split(',').any(|module| module == "landlock") => Self::Active,
            Ok(_) => Self::Inactive,
            Err(_) => Self::Unknown,
        }
    }
}

/// Why a kernel reports no Landlock although it is not disabled.
fn absence(listed: Listed) -> String {
    // SAFETY: the pointer is null, as the flag LANDLOCK_CREATE_RULESET_VERSION requires; the kernel returns a number.
    let asked =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, 1_u32) };
    let errno = if asked == -1 { nix::errno::Errno::last() } else { nix::errno::Errno::UnknownErrno };
    absence_by(errno, listed)
}

fn absence_by(errno: nix::errno::Errno, listed: Listed) -> String {
    const FILTER: &str = "the system call filter of a container or of the service manager denies it";
    use nix::errno::Errno;
    match (errno, listed) {
        (Errno::ENOSYS | Errno::UnknownErrno, Listed::Inactive) => {
            "the kernel does not support it".to_owned()
        }
        (Errno::ENOSYS | Errno::UnknownErrno, Listed::Unknown) => {
            format!("the kernel does not support it, or {FILTER}")
        }
        // The kernel itself has no other error for this call.
        _ => format!("{FILTER} ({})", errno.desc()),
    }
}

/// The restrictions that each Landlock ABI added.
const SINCE: [(u32, &str); 5] = [
    (2, "moving files between directories (Linux 5.19)"),
    (3, "truncating files (Linux 6.2)"),
    (4, "binding and connecting TCP (Linux 6.7)"),
    (5, "ioctl on devices (Linux 6.10)"),
    (6, "signals and abstract Unix sockets (Linux 6.12)"),
];

fn to_landlock(absence: &str, kernel: LandlockStatus, ruleset: &RulesetStatus, bind: Bind) -> Landlock {
    let abi = match kernel {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as u32,
        LandlockStatus::NotEnabled => {
            return Landlock::Absent(
                "it is disabled; add landlock to lsm= on the kernel command line".to_owned(),
            );
        }
        LandlockStatus::NotImplemented => return Landlock::Absent(absence.to_owned()),
    };
    match ruleset {
        RulesetStatus::FullyEnforced => Landlock::Enforced { abi: abi.min(NEWEST_ABI as u32), bind },
        RulesetStatus::PartiallyEnforced => {
            let lacking = SINCE.iter().filter(|(since, _)| *since > abi).map(|(_, what)| *what).collect();
            Landlock::Partial { abi, lacking }
        }
        RulesetStatus::NotEnforced => Landlock::Absent("the kernel enforced no restriction".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ranges_make_one_rule_per_port() {
        assert_eq!(bind(&[]), Bind::Ports(0));
        assert_eq!(bind(&[25..=25, 20..=30, 22..=24, 0..=0]), Bind::Ports(12));
        assert_eq!(bind(&[65_530..=65_535, 65_534..=65_535]), Bind::Ports(6));
        assert_eq!(bind(&[1..=1023]), Bind::Ports(1023));
    }

    #[test]
    fn an_older_kernel_is_reported_with_what_it_lacks() {
        let linux_6_7 = LandlockStatus::Available { effective_abi: ABI::V4, kernel_abi: None };
        let partial = to_landlock("", linux_6_7, &RulesetStatus::PartiallyEnforced, Bind::Ports(1));
        let lacking = vec!["ioctl on devices (Linux 6.10)", "signals and abstract Unix sockets (Linux 6.12)"];
        assert_eq!(partial, Landlock::Partial { abi: 4, lacking });
    }

    #[test]
    fn disabled_and_missing_landlock_are_distinguished() {
        let off = to_landlock("", LandlockStatus::NotEnabled, &RulesetStatus::NotEnforced, Bind::EveryPort);
        let absent = to_landlock(
            "absent",
            LandlockStatus::NotImplemented,
            &RulesetStatus::NotEnforced,
            Bind::EveryPort,
        );
        assert!(
            matches!((&off, &absent), (Landlock::Absent(off), Landlock::Absent(absent)) if off != absent)
        );
    }

    #[test]
    fn a_denied_landlock_is_not_taken_for_a_missing_one() {
        use nix::errno::Errno;
        assert_eq!(absence_by(Errno::ENOSYS, Listed::Inactive), "the kernel does not support it");
        assert!(absence_by(Errno::ENOSYS, Listed::Unknown).contains(", or the system call filter"));
        for (errno, listed) in [(Errno::ENOSYS, Listed::Active), (Errno::EPERM, Listed::Unknown)] {
            assert!(absence_by(errno, listed).starts_with("the system call filter"), "{errno} {listed:?}");
        }
    }

    #[test]
    fn a_policy_of_every_port_does_not_restrict_tcp() {
        assert_eq!(bind(&[1..=1023, 1024..=65535]), Bind::EveryPort);
        assert_eq!(bind(&[0..=65535]), Bind::EveryPort);
        assert_eq!(bind(&[2..=65535]), Bind::Ports(65534));
    }
}
