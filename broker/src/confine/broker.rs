//! Confines the broker before it serves: only the configured capabilities, an empty root, and no system call or file
//! that it does not need.

use portreeve_protocol::status::Credentials;

use super::landlock::{self, Landlock, Listed, Permitted};
use super::seccomp::{self, Seccomp, SeccompNeeds};
use super::verify::ProcStatus;
use super::{limits, locks, root};
use crate::capability::State;
use crate::failure::{Exit, Failure};
use crate::inject;
use crate::policy::Policy;
use crate::sys::SocketDirectories;

const STEP: &str = "confining the broker";

/// The broker's restrictions.
pub struct Confinement<'a> {
    /// security.capabilities
    pub retained: State,
    /// The policy, from which the Landlock rules are built.
    pub policy: &'a Policy,
    /// Whether a kernel that cannot enforce all Landlock restrictions is fatal.
    pub require_landlock: bool,
    /// Whether a kernel without seccomp is fatal.
    pub require_seccomp: bool,
    /// Whether the kernel lists Landlock as active.
    pub landlock_listed: Listed,
    /// The seccomp mode at the start.
    pub seccomp: u8,
}

/// The verified confinement.
#[derive(Debug)]
pub struct Verified {
    /// The credentials that the kernel reports.
    pub credentials: Credentials,
    /// A line for each restriction that /proc/self/status does not show.
    pub locks: Vec<String>,
    /// Whether binding TCP is restricted to the policy's ports.
    pub limits_tcp: bool,
    /// The restrictions that this kernel does not support.
    pub lacking: Vec<String>,
}

impl Confinement<'_> {
    /// Confines this single-threaded process, irrevocably, and reads back from the kernel that exactly these restrictions
    /// apply. The order matters: all steps but the last two need capabilities.
    pub fn apply(
        &self,
        directories: &mut SocketDirectories,
        status: &ProcStatus,
    ) -> Result<Verified, Failure> {
        if inject::lock("root")? {
            directories.replace(root::enter(&directories.paths())?);
        }
        limits::make_private()?;
        inject::point("broker.identity")?;
        set_root_ids()?;
        if inject::lock("bounding")? {
            locks::bounding(self.retained.permitted)?;
        }
        if inject::lock("securebits")? {
            locks::securebits()?;
        }
        if inject::lock("sets")? {
            locks::sets(&self.retained)?;
        }
        if inject::lock("no_new_privs")? {
            locks::no_new_privs()?;
        }

        let sockets = directories.descriptors();
        let permitted = Permitted { tcp_ports: self.policy.tcp_ports(), socket_directories: &sockets };
        let landlock = if inject::lock("landlock")? {
            landlock::restrict(permitted, self.landlock_listed)?
        } else {
            Landlock::Absent("omitted by a test".to_owned())
        };
        let needs = needs(self.policy, sockets.len());
        let support = status.seccomp_support()?;
        let seccomp =
            if inject::lock("seccomp")? { seccomp::install(&needs, support)? } else { Seccomp::Absent };

        inject::point("one_thread")?;
        status.expect_one_thread("broker")?;
        let credentials = if inject::lock("verify")? {
            status.expect("broker", &self.expected(&seccomp))?
        } else {
            status.read()?
        };
        self.verified(credentials, sockets.len(), &landlock, &seccomp)
    }

    /// The result that [`Confinement::apply`] will have on this kernel. Restricts nothing and needs no privilege.
    pub fn predict(&self, socket_directories: usize) -> Result<Verified, Failure> {
        let landlock = landlock::probe(self.policy.tcp_ports(), self.landlock_listed)?;
        let seccomp = seccomp::probe(&needs(self.policy, socket_directories))?;
        self.verified(self.expected(&seccomp), socket_directories, &landlock, &seccomp)
    }

    /// The verified confinement, unless a required restriction is missing.
    fn verified(
        &self,
        credentials: Credentials,
        socket_directories: usize,
        landlock: &Landlock,
        seccomp: &Seccomp,
    ) -> Result<Verified, Failure> {
        if let Some(lacking) = landlock.lacking().filter(|_| self.require_landlock) {
            return Err(Failure::new(
                Exit::Unavailable,
                STEP,
                lacking,
                "boot a kernel with Landlock (CONFIG_SECURITY_LANDLOCK and lsm=landlock), or set \
                 require_landlock = false in the broker scope",
            ));
        }
        if let Some(lacking) = seccomp.lacking().filter(|_| self.require_seccomp) {
            return Err(Failure::new(
                Exit::Unavailable,
                STEP,
                lacking,
                "boot a kernel with seccomp (CONFIG_SECCOMP), or set require_seccomp = false in the broker scope",
            ));
        }
        let root = match socket_directories {
            0 => "empty read-only root".to_owned(),
            count => format!("empty read-only root except {count} directories of Unix sockets"),
        };
        let securebits = format!("securebits {:#x}, locked", locks::SECUREBITS.bits());
        Ok(Verified {
            credentials,
            locks: vec![root, securebits, landlock.to_string(), seccomp.to_string()],
            limits_tcp: landlock.limits_tcp(),
            lacking: [landlock.lacking(), seccomp.lacking()].into_iter().flatten().collect(),
        })
    }

    fn expected(&self, seccomp: &Seccomp) -> Credentials {
        Credentials {
            inheritable: self.retained.inheritable.bits(),
            permitted: self.retained.permitted.bits(),
            effective: self.retained.effective.bits(),
            bounding: self.retained.permitted.bits(),
            no_new_privs: true,
            seccomp: if matches!(seccomp, Seccomp::Enforced { .. }) { 2 } else { self.seccomp },
            ..Credentials::default()
        }
    }
}

/// The optional features that a broker with this policy and this number of socket directories needs.
pub fn needs(policy: &Policy, socket_directories: usize) -> SeccompNeeds {
    SeccompNeeds { socket_files: socket_directories > 0, limits: policy.limited_resources() }
}

/// Sets all user and group ids to 0 and clears the supplementary groups.
fn set_root_ids() -> Result<(), Failure> {
    let os = |call: &'static str| move |error: nix::Error| Failure::os(STEP, call, error);
    let (user, group) = (nix::unistd::ROOT, nix::unistd::Gid::from_raw(0));
    nix::unistd::setgroups(&[]).map_err(os("setgroups"))?;
    nix::unistd::setresgid(group, group, group).map_err(os("setresgid"))?;
    nix::unistd::setresuid(user, user, user).map_err(os("setresuid"))
}
